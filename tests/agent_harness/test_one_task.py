"""One task from its text to its result, with each of the three ways to speak to a model."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from tests.agent_harness.desk import APIS, Desk, bash, use

Build = Callable[..., Desk]


@pytest.mark.parametrize("api", APIS)
def test_looks_edits_checks_and_says_so(desk: Build, api: str) -> None:
    at = desk(
        {"text": "I look.", **use("read", path="sums.py")},
        {**use("edit", path="sums.py", old="a - b", new="a + b"), "expect": "return a - b"},
        {**bash('python3 -c "import sums; print(sums.add(2, 3))"'), "expect": "Edited .*sums.py at line 2"},
        {"text": "Fixed: it adds.", "expect": "^5$"},
        api=api,
        task="Fix add in sums.py.",
    )
    (at.workspace / "sums.py").write_text("def add(a, b):\n    return a - b\n")
    assert at.run() == 0
    assert (at.workspace / "sums.py").read_text() == "def add(a, b):\n    return a + b\n"
    assert at.result()["stop_reason"] == "end_turn" and at.result()["text"] == "Fixed: it adds."
    assert [event["name"] for event in at.of("tool_call")] == ["read", "edit", "bash"]
    assert [e["status"] for e in at.of("tool_call_update") if e["status"] != "in_progress"] == ["completed"] * 3
    assert "".join(e["text"] for e in at.of("agent_message_chunk") if e["message"] == "m1") == "I look."
    assert at.of("usage_update")[-1]["total_tokens"] > 0
    keys = [{name.lower(): value for name, value in r["headers"].items()}["idempotency-key"] for r in at.requests()]
    assert keys == ["m1", "m2", "m3", "m4"]
    assert at.odd_lines == []


@pytest.mark.parametrize("api", APIS)
def test_the_journal_comes_before_the_deed_and_tells_it_all(desk: Build, api: str) -> None:
    at = desk({**bash("cp ../state/journal.jsonl seen"), "text": "Now."}, {"text": "Done."}, api=api)
    assert at.run() == 0
    seen = [json.loads(line) for line in (at.workspace / "seen").read_text().splitlines()]
    assert [record["type"] for record in seen] == ["user_message", "model", "model", "tool_intent"]
    kinds = [record["type"] for record in at.journal()]
    assert kinds == [record["type"] for record in seen] + ["tool_result", "model", "model", "result"]


def test_thoughts_are_told_and_go_back_where_the_provider_wants_them(desk: Build) -> None:
    at = desk({"thought": "First look around.", **bash("echo hello")}, {"text": "Done."})
    assert at.run(THINKING_TOKENS="2000") == 0
    assert at.of("agent_thought_chunk")[0]["text"] == "First look around."
    thinking = at.requests()[1]["body"]["messages"][1]["content"][0]
    assert thinking["type"] == "thinking" and thinking["thinking"] == "First look around." and thinking["signature"]


def test_reasoning_goes_back_encrypted_without_state_at_the_provider(desk: Build) -> None:
    at = desk({"thought": "First look around.", **bash("echo hello")}, {"text": "Done."}, api="openai-responses")
    assert at.run(MODEL="gpt-5-test") == 0
    assert at.of("agent_thought_chunk")[0]["text"].strip() == "First look around."
    assert at.requests()[0]["body"]["store"] is False
    assert at.result()["text"] == "Done."


def test_many_calls_in_one_answer_are_done_in_their_order(desk: Build) -> None:
    calls = [{"name": "bash", "arguments": {"command": f"echo {i} >> list"}} for i in range(5)]
    at = desk({"calls": calls}, {"text": "Done."})
    assert at.run() == 0
    assert (at.workspace / "list").read_text().split() == list("01234")


def test_the_task_may_come_on_stdin_and_again_without_being_two(desk: Build) -> None:
    at = desk({"text": "You said {{said}}"}, task="")
    at.start()
    at.write(b'{"type": "task", "id": "task", "text": "Count to three."}\n')
    at.wait_for("ack", lambda event: event["id"] == "task")
    assert at.end() == 0
    assert at.result()["text"] == "You said Count to three."


def test_the_task_file_is_the_task_where_it_is_too_long_for_the_environment(desk: Build) -> None:
    at = desk({"text": "ok"}, task="")
    del at.environ["TASK"]
    (at.folder / "task").write_text("x" * 200_000)
    assert at.run(TASK_FILE=str(at.folder / "task")) == 0
    assert "x" * 200_000 in at.said_to_model()


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"MODEL": ""}, "MODEL"),
        ({"MODEL_API": "gopher"}, "openai-responses"),
        ({"LIMIT_STEPS": "-1"}, "LIMIT_STEPS"),
        ({"DEADLINE": "tomorrow"}, "DEADLINE"),
        ({"TASK_FILE": "/nowhere/task", "TASK": "x"}, ""),
        ({"CARREL_GATEWAY": "gopher://x"}, "CARREL_GATEWAY"),
    ],
)
def test_bad_configuration_is_said_and_not_tried(desk: Build, environ: dict[str, str], named: str) -> None:
    at = desk({"text": "ok"})
    code = at.run(**environ)
    if not named:  # TASK is there as well
        assert code == 0
        return
    assert code == 78
    assert named in at.of("error")[0]["text"] and at.result()["stop_reason"] == "configuration"


def test_a_second_harness_on_the_same_state_is_refused(desk: Build) -> None:
    at = desk(bash("sleep 1000"))
    at.start()
    at.wait_for("tool_call")
    assert at.process is not None
    other = subprocess.run(at.process.args, env=at.environ, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)
    assert other.returncode == 78 and b"STATE_DIR" in other.stdout
