"""One script drives every agent: which of the offered tools runs a shell command, and with which arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripted_model import ScriptedModel, read
from tests.scripted_model.peer import CHAT, MESSAGES, RESPONSES, ask, request

SCRIPT = read([{"text": "I look.", "run": "ls -la"}])
TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}


def function(name: str, required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "name": name, "parameters": schema}


@pytest.mark.parametrize(
    ("tools", "name", "arguments"),
    [
        ([function("Read", path=TEXT), function("Bash", command=TEXT)], "Bash", {"command": "ls -la"}),
        ([function("BashOutput", bash_id=TEXT), function("bash", command=TEXT)], "bash", {"command": "ls -la"}),
        ([function("shell", command=TEXTS)], "shell", {"command": ["bash", "-lc", "ls -la"]}),
        ([function("exec_command", cmd=TEXT, yield_time_ms={"type": "number"})], "exec_command", {"cmd": "ls -la"}),
        ([function("shell", commands=TEXTS)], "shell", {"commands": ["ls -la"]}),
        ([function("my_terminal_tool", input=TEXT)], "my_terminal_tool", {"input": "ls -la"}),
        (
            [
                function(
                    "run_shell_command",
                    ("command", "description", "timeout", "wait", "mode", "dir"),
                    command=TEXT,
                    description=TEXT,
                    timeout={"type": "integer", "minimum": 5},
                    wait={"type": "boolean"},
                    mode={"enum": ["quiet", "loud"]},
                    dir={"type": ["string", "null"]},
                )
            ],
            "run_shell_command",
            {
                "command": "ls -la",
                "description": "ls -la",
                "timeout": 5,
                "wait": False,
                "mode": "quiet",
                "dir": None,
            },
        ),
    ],
)
def test_a_function_is_chosen_by_name_and_filled_by_its_schema(
    tools: list[dict[str, Any]], name: str, arguments: dict[str, Any]
) -> None:
    with ScriptedModel(SCRIPT) as model:
        got = ask(model.url, "POST", RESPONSES, request(RESPONSES, "a") | {"tools": tools}).json
    call = got["output"][-1]
    assert (call["type"], call["name"], json.loads(call["arguments"])) == ("function_call", name, arguments)


def test_a_shell_of_the_providers_own() -> None:
    bash = {"type": "bash_20250124", "name": "bash"}
    with ScriptedModel(SCRIPT) as model:
        messages = ask(model.url, "POST", MESSAGES, request(MESSAGES, "a") | {"tools": [bash]}).json
        local = ask(model.url, "POST", RESPONSES, request(RESPONSES, "a") | {"tools": [{"type": "local_shell"}]}).json
        hosted = ask(model.url, "POST", RESPONSES, request(RESPONSES, "a") | {"tools": [{"type": "shell"}]}).json
    assert (messages["content"][-1]["name"], messages["content"][-1]["input"]) == ("bash", {"command": "ls -la"})
    assert local["output"][-1]["action"]["command"] == ["bash", "-lc", "ls -la"]
    assert hosted["output"][-1]["action"]["commands"] == ["ls -la"]


@pytest.mark.parametrize(
    ("system", "language"),
    [("Answer with one ```mswea_bash_command block.", "mswea_bash_command"), ("Say what to do.", "bash")],
)
def test_without_tools_it_is_a_fenced_block(system: str, language: str) -> None:
    with ScriptedModel(SCRIPT) as model:
        got = ask(model.url, "POST", CHAT, request(CHAT, "a", tools=(), system=system)).json
    assert got["choices"][0]["message"]["content"] == f"I look.\n\n```{language}\nls -la\n```"


def test_tools_none_of_which_runs_commands() -> None:
    with ScriptedModel(SCRIPT) as model:
        got = ask(model.url, "POST", CHAT, request(CHAT, "a", tools=("read", "write")))
    assert got.status == 400 and "read, write" in got.json["error"]["message"]


def test_a_tool_that_takes_free_text() -> None:
    script = read([{"calls": [{"name": "apply_patch", "arguments": "*** Begin Patch"}]}])
    with ScriptedModel(script) as model:
        tools = [{"type": "custom", "name": "apply_patch"}]
        item = ask(model.url, "POST", RESPONSES, request(RESPONSES, "a") | {"tools": tools}).json["output"][-1]
        custom = [{"type": "custom", "custom": {"name": "apply_patch"}}]
        chat = ask(model.url, "POST", CHAT, request(CHAT, "a") | {"tools": custom}).json
    assert (item["type"], item["input"]) == ("custom_tool_call", "*** Begin Patch")
    assert chat["choices"][0]["message"]["tool_calls"][0]["custom"]["input"] == "*** Begin Patch"
