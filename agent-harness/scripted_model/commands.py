"""A shell command becomes a call of whatever tool the request offers for that: one script drives every agent.

The rules, in order:
1. A tool of the provider's own that is a shell: Anthropic's `bash_*`, OpenAI's `local_shell` and `shell`.
2. A function by name, whatever its case, the first of NAMES that is offered.
3. A function whose name has one of shell, bash, exec, terminal, command in it and that takes a command.
4. No tool at all: a fenced block in the text, ```mswea_bash_command where the prompt speaks of that, else ```bash.

The command goes into the first of ARGUMENTS the tool's JSON schema has; where that wants a list of texts, as
`["bash", "-lc", COMMAND]` (`commands`: `[COMMAND]`). Other required arguments get their default, null where it may be,
their first allowed value, or the emptiest value of their type; a text is given the command's first words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from scripted_model.asked import Asked, BadRequest, Tool
from scripted_model.script import Call

NAMES: Final = (
    "bash",
    "shell",
    "shell_command",
    "exec_command",
    "local_shell",
    "run_shell_command",
    "run_command",
    "execute_command",
    "run_in_terminal",
    "terminal",
    "execute",
    "run",
    "exec",
)
PARTS: Final = ("shell", "bash", "exec", "terminal", "command")
ARGUMENTS: Final = ("command", "cmd", "commands", "script", "code", "input")
BUILT_IN: Final = {"local_shell", "shell"}
TITLE_CHARS: Final = 60


def tool_call(asked: Asked, command: str) -> Call:
    """The call that runs it. Raises BadRequest where tools are offered and none of them runs commands."""
    tool = _shell(asked.tools)
    if tool is None:
        offered = ", ".join(one.name for one in asked.tools)
        raise BadRequest(f"the script runs a shell command, and no tool offered here does: {offered}")
    if tool.kind in BUILT_IN or tool.kind.startswith("bash_"):
        return Call(tool.name, {"command": command})
    return Call(tool.name, _arguments(tool.schema, command))


def fenced(asked: Asked, command: str) -> str:
    """For a request without tools: the block in the text that such agents look for."""
    told = [asked.system, *(one.text for one in asked.said if one.role == "user")]
    language = "mswea_bash_command" if any("mswea_bash_command" in text for text in told) else "bash"
    return f"```{language}\n{command}\n```"


def _shell(tools: tuple[Tool, ...]) -> Tool | None:
    for tool in tools:
        if tool.kind in BUILT_IN or tool.kind.startswith("bash_"):
            return tool
    functions = [tool for tool in tools if tool.kind == "function" and _argument(tool.schema)]
    for name in NAMES:
        for tool in functions:
            if tool.name.lower() == name:
                return tool
    for tool in functions:
        if any(part in tool.name.lower() for part in PARTS):
            return tool
    return None


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("properties")
    return found if isinstance(found, dict) else {}


def _argument(schema: Mapping[str, Any]) -> str | None:
    return next((name for name in ARGUMENTS if name in _properties(schema)), None)


def _arguments(schema: Mapping[str, Any], command: str) -> dict[str, Any]:
    name = _argument(schema)
    assert name is not None  # _shell took it for that
    properties = _properties(schema)
    given: dict[str, Any] = {name: command}
    if "array" in _types(properties[name]):
        given[name] = [command] if name == "commands" else ["bash", "-lc", command]
    required = schema.get("required")
    for other in required if isinstance(required, list) else []:
        if other not in given:
            given[other] = _filled(properties.get(other), command)
    return given


def _filled(schema: object, command: str) -> Any:
    if not isinstance(schema, dict):
        return None
    if "default" in schema:
        return schema["default"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    types = _types(schema)
    if "null" in types:
        return None
    if "string" in types:
        return command.split("\n")[0][:TITLE_CHARS]
    if "boolean" in types:
        return False
    if "integer" in types or "number" in types:
        return schema.get("minimum", 0)
    return [] if "array" in types else {}


def _types(schema: object) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    said = schema.get("type", [])
    types = {said} if isinstance(said, str) else set(said) if isinstance(said, list) else set()
    for one in [*(schema.get("anyOf") or []), *(schema.get("oneOf") or [])]:
        types |= _types(one)
    return types
