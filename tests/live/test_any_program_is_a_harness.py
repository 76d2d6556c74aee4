"""Acceptance: a ten-line bash script asks for a name half-way, is answered by `carrel send`, and finishes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.place import ROOT, Place, until

pytestmark = [pytest.mark.docker, pytest.mark.root]

SCRIPT = ROOT / "agent-harness" / "examples" / "ask.sh"


def test_it_asks_half_way_is_answered_and_finishes(live: Place, tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 10
    id = live.ok("run", "-d", "--name", "asker", "--upload", str(SCRIPT), "--", "bash", "ask.sh").strip()
    until(lambda: "What is your name?" in live.ok("logs", "asker"), "it asks")
    assert live.record("asker")["state"] == "RUNNING"
    live.ok("send", "@last", "Ada")
    assert live.carrel("wait", "asker").returncode == 0
    assert "Hello, Ada." in live.ok("logs", "-n", "1", "asker")
    live.ok("artifacts", "get", "-o", str(tmp_path), "asker")
    assert (tmp_path / "name.txt").read_text() == "Ada\n"
    types = [event["type"] for event in live.events(id)]
    receipts = [one for one in types if one.startswith("message.")]
    assert receipts[:2] == ["message.accepted", "message.delivered"]
    assert types[-1] == "execution.finished"


def test_one_in_python_speaks_in_typed_events(live: Place) -> None:
    example = ROOT / "agent-harness" / "examples" / "steered.py"
    of_two = ("-e", "STEPS=2", "-e", "STEP_S=90")  # each ends when it is spoken to
    live.ok("run", "-d", "--name", "steered", *of_two, "--upload", str(example), "--", "python3", "steered.py")
    until(lambda: any(event["type"] == "tool_call" for event in live.events("steered")), "its first step")
    live.ok("send", "steered", "faster")
    live.ok("send", "steered", "faster still")
    assert live.carrel("wait", "steered").returncode == 0
    events = live.events("steered")
    said = [event["data"].get("text") for event in events if event["type"] == "agent_message_chunk"]
    assert said == ["you said: faster", "you said: faster still"]
    assert sum(event["type"] == "tool_call_update" for event in events) == 2
    assert [event["data"]["stop_reason"] for event in events if event["type"] == "result"] == ["end_turn"]
    assert live.record("steered")["output"] in (None, "jsonl")


def test_the_first_one_hears_and_leaves_a_report(live: Place) -> None:
    example = ROOT / "agent-harness" / "examples" / "first.sh"
    live.ok("run", "-d", "--name", "first", "-e", "STEPS=1", "-e", "STEP_S=90", "-f", str(example))
    until(lambda: "step 1 of 1" in live.ok("logs", "first"), "its first step")
    live.ok("send", "first", "hello")
    assert live.carrel("wait", "first").returncode == 0
    assert "you said: hello" in live.ok("logs", "first")
    assert live.ok("artifacts", "get", "-o", "-", "first", "report.txt") == "steps 1\nmessages 1\n"
