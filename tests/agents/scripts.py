"""What the model does in each test, for any of the agents. mini-swe-agent says that it is done by a command, the others
by words alone; Codex leaves a command to itself after ten seconds unless the call says otherwise."""

from __future__ import annotations

from typing import Any, Final

from tests.real_project import turns

MINI_DONE: Final = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
YIELD_MS: Final = 300_000


def scripts(agent: str) -> dict[str, Any]:
    """All of them, by name."""
    made = _scripts(agent)
    if agent == "codex":
        for script in made["scripts"].values():
            for turn in script["turns"]:
                if command := turn.pop("run", ""):
                    turn["calls"] = [{"name": "exec_command", "arguments": {"cmd": command, "yield_time_ms": YIELD_MS}}]
    return made


def _scripts(agent: str) -> dict[str, Any]:
    finish = MINI_DONE if agent == "mini-swe-agent" else ""
    last = {"run": finish} if finish else {}
    lost = "Your sandbox was lost"
    return {
        "scripts": {
            "repair": {"turns": turns(finish)},
            "steer": {
                "turns": [
                    {"run": "until [ -e go ]; do sleep 0.1; done; echo went"},
                    {"text": "I was told: {{said}}", **last},
                ]
            },
            "interrupt": {
                "turns": [
                    {"run": "echo $$ > pid; exec sleep 1000"},
                    # Between the two some programs put an answer of their own into the conversation: no turns, rules.
                    {"match": "after the interrupt", "text": "As you say.", "run": "echo still there"},
                    {"match": "still there", "text": "Done after all.", **last},
                ]
            },
            "lost": {
                "turns": [
                    {"run": "echo one >> log"},
                    {"run": "echo two >> log; sleep 1000"},
                    {"match": lost, "text": "I look first.", "run": "cat log; echo looked"},
                    {"match": "looked", "text": "Done in the second life.", **last},
                ]
            },
            "refused": {"turns": [{"text": "x", "fault": {"status": 400, "times": 1000}}]},
        },
        "default": "repair",
    }
