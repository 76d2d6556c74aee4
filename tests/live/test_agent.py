"""The bundled agent in real containers, against a model that follows a script: heard in the middle of a turn,
interrupted, over its budget, and in front of commands that hang, flood and fork.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from scripted_model import ScriptedModel, read
from tests.place import Place, until

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(300), pytest.mark.xdist_group("agent")]

KEY: Final = "sk-canary-of-the-live-agent"
#: What one call costs where a test counts money: the price of `dear` below, and what the script says it used.
USED: Final = {"input_tokens": 1000, "output_tokens": 1000}
HOSTILE: Final = (
    "yes",
    "head -c 1G /dev/zero",
    r"printf '\xff\xfe broken \xc3'; head -c 4096 /dev/urandom",
    "read -p 'Your name? ' name; echo got=$name",
    "python3 -c 'input(\"Password: \")'",
    ":(){ :|:& };:",
)


def bash(command: str, *, wait_s: int) -> dict[str, Any]:
    """A turn that calls it, and waits at most so long before it goes on beside."""
    return {"calls": [{"name": "bash", "arguments": {"command": command, "wait_s": wait_s}}]}


def script() -> dict[str, Any]:
    return {
        "scripts": {
            "steer": {
                "turns": [
                    bash("until [ -e go ]; do sleep 0.1; done; echo went", wait_s=200),
                    {"text": "I was told: {{said}}"},
                ]
            },
            "interrupt": {
                "turns": [bash("sleep 1000", wait_s=1000), {"run": "echo still here"}, {"text": "Done after all."}],
            },
            "dear": {
                "turns": [{"text": "One.", "run": "echo 1 > one", "usage": USED}, {"text": "Two.", "usage": USED}],
            },
            "hostile": {"turns": [*(bash(command, wait_s=4) for command in HOSTILE), {"text": "Alive."}]},
        },
        "default": "steer",
    }


@dataclass
class Agents:
    """A server whose only provider is the script."""

    place: Place
    model: ScriptedModel

    def submit(self, name: str, *flags: str) -> str:
        """An execution of the bundled agent on the script of this name; its name."""
        ref = f"{name}-{uuid.uuid4().hex[:6]}"
        self.place.ok("run", "-d", "--harness", "agent", "--name", ref, *flags, f"[[script:{name}]] Go.")
        return ref

    def told(self, ref: str, kind: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.place.events(ref) if event["type"] == kind]


@pytest.fixture(scope="module")
def agents(sandbox_image: str) -> Iterator[Agents]:
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    prices = folder / "models.toml"
    with ScriptedModel(read(script()), key=KEY) as model:
        prices.write_text(
            f"""
            [providers.script]
            base_url = "{model.url}"
            apis = ["anthropic-messages"]
            key_env = "SCRIPT_KEY"

            [prices]
            "*" = {{ input = 1.0, output = 1.0 }}
            """
        )
        place = Place(
            folder,
            settings=(f"image={sandbox_image}", "lease_s=5", f"models_file={prices}", "default_model=scripted"),
            environment={"SCRIPT_KEY": KEY},
        )
        try:
            place.serve()
            yield Agents(place, model)
        finally:
            place.close()


def test_a_message_during_a_tool_call_is_in_the_next_request(agents: Agents) -> None:
    ref = agents.submit("steer")
    until(lambda: agents.told(ref, "tool_call"), "its command runs")
    agents.place.ok("send", ref, "look at the harbour first")
    until(lambda: agents.told(ref, "message.delivered"), "it is in the harness's stdin")
    agents.place.ok("exec", ref, "--", "touch", "/workspace/go")
    assert agents.place.carrel("wait", ref).returncode == 0
    asked = [
        json.dumps(one["body"]) for one in agents.model.counts.requests() if "[[script:steer]]" in str(one["body"])
    ]
    assert len(asked) == 2 and "look at the harbour first" in asked[1]
    assert agents.told(ref, "message.consumed")


def test_an_interrupt_ends_the_command_and_the_conversation_goes_on(agents: Agents) -> None:
    ref = agents.submit("interrupt")
    until(lambda: agents.told(ref, "tool_call"), "its command runs")
    agents.place.ok("send", "--interrupt", ref)
    until(lambda: any(one.get("status") == "cancelled" for one in agents.told(ref, "tool_call_update")), "it was ended")
    assert agents.place.record(ref)["state"] in ("RUNNING", "HIBERNATED", "HIBERNATING")
    agents.place.ok("send", ref, "go on")
    assert agents.place.carrel("wait", ref).returncode == 0
    assert agents.told(ref, "result")[-1]["text"] == "Done after all."


def test_the_call_over_the_budget_is_refused_with_the_figures(agents: Agents) -> None:
    calls = agents.model.counts.stats()["begun"]
    ref = agents.submit("dear", "--budget-usd", "0.002")
    assert agents.place.carrel("wait", ref).returncode != 0
    record = agents.place.record(ref)
    assert record["outcome"]["kind"] == "FAILED" and record["outcome"]["reason"] == "budget"
    (exceeded,) = agents.told(ref, "budget.exceeded")
    assert "the limit is 2000" in record["outcome"]["message"], (record["outcome"], exceeded)
    assert agents.model.counts.stats()["begun"] - calls <= 1, "the refused call reached nobody"


def test_over_the_budget_it_waits_for_a_raise_where_told_so(agents: Agents) -> None:
    ref = agents.submit("dear", "--budget-usd", "0.002", "--on-budget", "wait")
    until(lambda: agents.told(ref, "budget.exceeded"), "the call is held")
    record = agents.place.record(ref)
    assert record["state"] == "RUNNING" and record["over_budget"]
    agents.place.ok("update", ref, "--budget-usd", "1")
    assert agents.place.carrel("wait", ref).returncode == 0
    assert not agents.place.record(ref)["over_budget"]


def test_commands_that_hang_flood_and_fork_do_not_end_the_loop(agents: Agents) -> None:
    ref = agents.submit("hostile", "-m", "512m")
    assert agents.place.carrel("wait", ref).returncode == 0
    assert agents.told(ref, "result")[-1]["text"] == "Alive."
    updates = agents.told(ref, "tool_call_update")
    # Each came back: ended, or (`yes`) as one that runs on and can be polled.
    assert len({one["id"] for one in updates if one.get("status") != "pending"}) == len(HOSTILE), updates
    # Bounded: what the model and the history were told is nothing like a gigabyte.
    assert sum(len(json.dumps(one)) for one in updates) < 1 << 20
