"""Rules 1–5 of the contract, each by itself: what a new life does about a call that an earlier one left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_harness.calls import Call
from agent_harness.replay import Rule, of_change, of_command
from tests.agent_harness.desk import Desk, bash, eventually, use

Build = Callable[..., Desk]
SLOW = "echo begun; echo x >> ../marks; while [ ! -e go ]; do sleep 0.02; done; echo ended"


def begun(at: Desk) -> None:
    """Its command runs, and it is killed."""
    at.start()
    eventually(lambda: (at.folder / "marks").exists())
    at.kill()


def test_1_a_result_that_is_there_is_not_asked_for_again(desk: Build) -> None:
    at = desk(bash("echo x >> ../marks"), bash("sleep 1000", wait_s=900), {"text": "Done."})
    at.start()
    eventually(lambda: (at.state / "calls/2.0/out").exists())
    at.kill()
    at.end_commands()
    assert at.run(EXECUTION_RESUMED="1") == 0
    assert (at.folder / "marks").read_text() == "x\n"
    assert at.text("1.0") == "[exit code 0, no output]"


def test_2_what_ended_meanwhile_is_recovered(desk: Build) -> None:
    at = desk(bash(SLOW, wait_s=900), {"text": "Done.", "expect": "^begun\nended$"})
    begun(at)
    (at.workspace / "go").touch()
    eventually(lambda: (at.state / "calls/1.0/rc").exists())
    assert at.run(EXECUTION_RESUMED="1") == 0
    assert (at.folder / "marks").read_text() == "x\n" and len(at.requests()) == 2


def test_3_what_still_runs_is_attached_to(desk: Build) -> None:
    at = desk(bash(SLOW, wait_s=900), {"text": "Done.", "expect": "^begun\nended$"})
    begun(at)
    at.start(EXECUTION_RESUMED="1")
    at.wait_for("tool_call_update", lambda event: "re-attached" in event.get("text", ""))
    (at.workspace / "go").touch()
    assert at.end() == 0
    assert (at.folder / "marks").read_text() == "x\n"


@pytest.mark.parametrize("effect", ["unknown", "once"])
def test_4_what_was_cut_off_is_in_doubt_and_said_so(desk: Build, effect: str) -> None:
    at = desk(bash(SLOW, wait_s=900, effect=effect), {"text": "Done.", "expect": "may have run wholly, partly or not"})
    begun(at)
    at.end_commands()
    assert at.run(EXECUTION_RESUMED="1") == 0
    assert at.text("1.0").startswith("IN DOUBT") and "begun" in at.text("1.0")
    assert at.wait_for("tool_call_update", lambda event: event["status"] == "in_doubt")["id"] == "1.0"
    assert (at.folder / "marks").read_text() == "x\n"


@pytest.mark.parametrize("effect", ["none", "idempotent"])
def test_4_where_it_does_no_harm_it_is_run_again(desk: Build, effect: str) -> None:
    at = desk(bash(SLOW, wait_s=900, effect=effect), {"text": "Done.", "expect": "^begun\nended$"})
    begun(at)
    at.end_commands()
    (at.workspace / "go").touch()
    assert at.run(EXECUTION_RESUMED="1") == 0
    assert (at.folder / "marks").read_text() == "x\nx\n"
    assert [r["folder"] for r in at.journal() if r["type"] == "tool_intent"] == ["1.0", "1.0~2"]


def test_4_a_job_that_was_lost_is_told(desk: Build) -> None:
    at = desk(
        bash("sleep 1000", wait_s=0, timeout_s=5000),
        bash("touch here; while [ ! -e go ]; do sleep 0.02; done", wait_s=900, effect="idempotent"),
        {"text": "Done.", "expect": "job 1.0"},
    )
    at.start()
    eventually(lambda: (at.workspace / "here").exists())
    at.kill()
    at.end_commands()
    (at.workspace / "go").touch()
    assert at.run(EXECUTION_RESUMED="1") == 0
    assert "IN DOUBT" in at.said_to_model()


def test_5_what_never_began_is_run(desk: Build) -> None:
    at = desk(bash("echo x >> ../marks"), {"text": "Done."})
    at.run()
    # Back to the moment between the intent and the command.
    lines = (at.state / "journal.jsonl").read_bytes().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if json.loads(line)["type"] == "tool_intent") + 1
    (at.state / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
    (at.folder / "marks").unlink()
    for name in ("pid", "rc"):
        (at.state / "calls/1.0" / name).unlink()
    assert at.run(EXECUTION_RESUMED="1") == 0
    assert (at.folder / "marks").read_text() == "x\n"


def test_5_who_takes_a_call_first_has_it(tmp_path: Path) -> None:
    call = Call(tmp_path / "calls" / "1.0")
    assert of_command({"folder": "1.0"}, call) is Rule.RUN
    call.folder.mkdir(parents=True)
    assert call.never_ran() and call.never_ran()
    call.start("echo x > x", cwd=tmp_path, timeout_s=60, tty=False, environ=os.environ)
    eventually(call.gone)
    assert call.wait(0) is None
    assert not (tmp_path / "x").exists() and of_command({"folder": "1.0"}, call) is Rule.RUN


@pytest.mark.parametrize(
    ("now", "rule"), [("after", Rule.RECOVER), ("before", Rule.RUN), ("another", Rule.DOUBT), (None, Rule.DOUBT)]
)
def test_a_write_is_judged_by_what_is_in_the_file(tmp_path: Path, now: str | None, rule: Rule) -> None:
    import hashlib

    if now is not None:
        (tmp_path / "f").write_text(now)
    digest = {word: hashlib.sha256(word.encode()).hexdigest() for word in ("before", "after")}
    assert of_change({"path": str(tmp_path / "f"), **digest}) is rule
    assert of_change(None) is Rule.RUN


@pytest.mark.parametrize(("now", "told"), [("after", "Edited"), ("before", "Edited"), ("another", "IN DOUBT")])
def test_an_edit_between_intent_and_result(desk: Build, now: str, told: str) -> None:
    at = desk(use("edit", path="f", old="before", new="after"), {"text": "Done."})
    (at.workspace / "f").write_text("before")
    assert at.run() == 0
    lines = (at.state / "journal.jsonl").read_bytes().splitlines(keepends=True)
    cut = next(i for i, line in enumerate(lines) if json.loads(line)["type"] == "tool_intent") + 1
    (at.state / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
    (at.workspace / "f").write_text(now)
    assert at.run(EXECUTION_RESUMED="1") == 0
    assert at.text("1.0").startswith(told)
    assert (at.workspace / "f").read_text() == ("another" if now == "another" else "after")


def cut_at_every_byte(data: bytes) -> list[int]:
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    return [place for end in ends for place in (end - 1, end, end + 1, end + 20) if 0 < place <= len(data)]


def test_a_torn_last_line_is_cut_and_the_rest_goes_on(desk: Build) -> None:
    at = desk(bash("echo x >> ../marks"), use("write", path="f", content="x"), {"text": "Done."})
    assert at.run() == 0
    whole = (at.state / "journal.jsonl").read_bytes()
    for place in sorted(set(cut_at_every_byte(whole))):
        (at.state / "journal.jsonl").write_bytes(whole[:place])
        if b'"tool_intent"' not in whole[: whole[:place].rfind(b"\n") + 1]:  # nothing had been done by then
            shutil.rmtree(at.state / "calls")
            (at.folder / "marks").unlink()
        assert at.run(EXECUTION_RESUMED="1", MESSAGE_WAIT_S="0") == 0, place
        assert (at.folder / "marks").read_text() == "x\n", place
        kinds = [(r["type"], r.get("state"), r.get("id")) for r in at.journal()]
        assert len([k for k in kinds if k[0] == "tool_result"]) == 2, place


def test_a_journal_of_somebody_else_is_refused(desk: Build) -> None:
    at = desk({"text": "Done."})
    at.state.mkdir()
    (at.state / "journal.jsonl").write_text('not ours\n{"type": "result"}\n')
    assert at.run() == 78
    assert "line 1" in at.of("error")[0]["text"]


def test_a_request_that_was_asked_stays_the_same_whatever_came_since(desk: Build) -> None:
    at = desk({"text": "x", "fault": {"hang": True}}, {"text": "You said {{said}}"})
    at.start()
    eventually(lambda: len(at.requests()) == 1)
    at.say("Meanwhile.", id="m-1")
    at.wait_for("ack")
    at.kill()
    assert at.run(EXECUTION_RESUMED="1") == 0
    bodies: list[Any] = [request["body"] for request in at.requests()]
    assert bodies[0] == bodies[1] and "Meanwhile." in json.dumps(bodies[2])
    assert at.result()["text"] == "You said Meanwhile."
