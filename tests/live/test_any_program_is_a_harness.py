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
