"""Real CLI agents from their registries, in real containers, against a model that follows a script: work on a real
project, its events, messages and interrupts in the middle, a lost sandbox, an API that says no."""

from __future__ import annotations

from pathlib import Path

import docker
import pytest

from tests.agents.desk import Desk
from tests.place import until
from tests.real_project import REPAIR, check_patch, lay_broken

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.full, pytest.mark.timeout(1800)]


def test_it_fixes_a_bug_in_a_real_project(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    lay_broken(tmp_path / "up")
    ref = desk.submit("repair", "--upload", f"{tmp_path / 'up'}/.:.")
    assert desk.finished(ref) == "SUCCEEDED"

    desk.place.ok("artifacts", "get", ref, "fix.patch", "-o", str(tmp_path))
    (tmp_path / "fresh").mkdir()
    check_patch(tmp_path / "fix.patch", tmp_path / "fresh")

    # Its tool calls, in our words: each begun once and ended once, with what was run and what came of it.
    calls = {one["id"]: one for one in desk.told(ref, "tool_call")}
    ends = {one["id"]: one for one in desk.told(ref, "tool_call_update") if one["status"] != "in_progress"}
    assert [one["title"] for one in calls.values()][: len(REPAIR)] == [command for command, _ in REPAIR]
    assert ends.keys() == calls.keys() and {one["status"] for one in ends.values()} == {"completed"}
    assert "passed" in list(ends.values())[4]["text"]
    assert "The header was split at the wrong character." in desk.said(ref)
    assert desk.told(ref, "result")[-1]["stop_reason"] == "end_turn"

    # The model was asked once for each turn, and the gateway counted what the provider did.
    record = desk.place.record(ref)
    assert record["spend"]["calls"] == len(desk.asked("repair")) == len(REPAIR) + 1
    assert sum(one["input_tokens"] for one in desk.told(ref, "usage")) == record["spend"]["input_tokens"] > 0


def test_a_message_in_the_middle_of_a_turn_is_in_the_next_request(desk: Desk) -> None:
    ref = desk.submit("steer")
    until(lambda: desk.told(ref, "tool_call"), "its command runs")
    desk.place.ok("send", ref, "look at the harbour first")
    until(lambda: desk.told(ref, "message.delivered"), "it is in the harness's stdin")
    desk.place.ok("exec", ref, "--", "touch", "/workspace/go")
    assert desk.finished(ref) == "SUCCEEDED"
    first, second, *_ = desk.asked("steer")
    assert "look at the harbour first" not in first and "look at the harbour first" in second
    assert [one["text"] for one in desk.told(ref, "user_message")] == ["look at the harbour first"]
    assert desk.told(ref, "message.consumed")


def test_an_interrupt_ends_the_command_and_the_conversation_goes_on(desk: Desk) -> None:
    ref = desk.submit("interrupt")
    until(lambda: desk.place.carrel("exec", ref, "--", "test", "-s", "/workspace/pid").returncode == 0, "it runs")
    desk.place.ok("send", "--interrupt", ref)
    until(lambda: any(one["status"] == "cancelled" for one in desk.told(ref, "tool_call_update")), "it was ended")
    gone = "kill -0 $(cat /workspace/pid) 2>/dev/null && exit 1 || exit 0"
    until(lambda: desk.place.carrel("exec", ref, "--", "sh", "-c", gone).returncode == 0, "nothing of it is left")
    assert desk.place.record(ref)["state"] == "RUNNING" and desk.told(ref, "ask")
    desk.place.ok("send", ref, "go on after the interrupt")
    assert desk.finished(ref) == "SUCCEEDED"
    assert "Done after all." in desk.said(ref)


def test_it_goes_on_after_its_container_was_killed(desk: Desk) -> None:
    ref = desk.submit("lost")
    until(lambda: any("sleep 1000" in one["title"] for one in desk.told(ref, "tool_call")), "its second command runs")
    until(
        lambda: desk.place.ok("exec", ref, "--", "wc", "-l", "/workspace/log").startswith("2"), "its first half is done"
    )
    before = len(desk.asked("lost"))
    engine = docker.from_env()
    engine.containers.get(f"carrel-{desk.place.record(ref)['sandbox_id']}").kill()
    engine.close()
    assert desk.finished(ref) == "SUCCEEDED"
    record = desk.place.record(ref)
    assert record["attempt"] == 2
    # It was told what is in doubt, in the conversation it had before, and did nothing twice.
    resumed = desk.asked("lost")[before]
    assert "sleep 1000" in resumed and "partly or not at all" in resumed and "echo one >> log" in resumed
    doubted = [one["id"] for one in desk.told(ref, "tool_call_update") if one["status"] == "in_doubt"]
    begun = [one["id"] for one in desk.told(ref, "tool_call") if "sleep 1000" in one["title"]]
    assert doubted == begun and len(begun) == 1
    looked = [one["text"] for one in desk.told(ref, "tool_call_update") if "looked" in one.get("text", "")]
    assert "one\ntwo\nlooked" in looked[0]
    assert "Done in the second life." in desk.said(ref)


def test_an_api_that_says_no_is_no_success(desk: Desk) -> None:
    ref = desk.submit("refused")
    assert desk.place.carrel("wait", ref).returncode != 0
    assert desk.place.record(ref)["outcome"]["kind"] == "FAILED"
    assert any("the script says so" in one["text"] for one in desk.told(ref, "error"))
