"""What people say while it works: messages, interrupts, questions, cancel."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import pytest

from tests.agent_harness.desk import APIS, Desk, bash, eventually, use

Build = Callable[..., Desk]
LONG = bash("echo begun; while [ ! -e go ]; do sleep 0.02; done", wait_s=60)


@pytest.mark.parametrize("api", APIS)
def test_a_message_during_a_tool_call_is_in_the_very_next_request(desk: Build, api: str) -> None:
    at = desk(LONG, {"text": "You said {{said}}"}, api=api)
    at.start()
    at.wait_for("tool_call")
    at.say("Use tabs.", id="m-1")
    at.wait_for("ack", lambda event: event["id"] == "m-1")
    (at.workspace / "go").touch()
    assert at.end() == 0
    assert "Use tabs." not in at.said_to_model(0) and "Use tabs." in at.said_to_model(1)
    assert at.result()["text"] == "You said Use tabs."


def test_a_receipt_is_given_when_the_message_is_on_disk(desk: Build) -> None:
    at = desk(LONG, {"text": "Done."})
    at.start()
    at.wait_for("tool_call")
    for i in range(20):
        at.say(f"message {i}", id=f"m-{i}")
    at.wait_for("ack", times=20)
    at.kill()
    kept = [record["id"] for record in at.journal() if record["type"] == "user_message"]
    assert kept[1:] == [f"m-{i}" for i in range(20)]


def test_a_message_said_twice_is_one(desk: Build) -> None:
    at = desk(LONG, {"text": "Done."})
    at.start()
    at.wait_for("tool_call")
    at.say("only once", id="m-1")
    at.say("only once", id="m-1")
    at.wait_for("ack", times=2)
    at.kill()
    at.start(EXECUTION_RESUMED="1")
    at.say("only once", id="m-1")
    at.wait_for("ack", times=3)
    (at.workspace / "go").touch()
    assert at.end() == 0
    assert at.said_to_model().count("only once") == 1


def test_a_line_that_is_no_message_object_is_a_message(desk: Build) -> None:
    at = desk(LONG, {"text": "Done."})
    at.start()
    at.wait_for("tool_call")
    at.write(b'just words\n\n{"type": "user_message"}\n[1, 2]\n\xff\xfe\n{"type": "ack", "id": "x"}\nwithout an end')
    at.no_more()
    eventually(lambda: sum(record["type"] == "user_message" for record in at.journal()) == 6)
    (at.workspace / "go").touch()
    assert at.end() == 0
    for part in ("just words", '{\\"type\\": \\"user_message\\"}', "[1, 2]", "��", "without an end"):
        assert part in at.said_to_model()


def test_what_is_to_follow_waits_for_the_end_of_the_work(desk: Build) -> None:
    at = desk(LONG, bash("echo two"), {"text": "First done."}, {"text": "Then: {{said}}"})
    at.start()
    at.wait_for("tool_call")
    at.say("And then this.", id="m-1", mode="follow_up")
    at.wait_for("ack")
    (at.workspace / "go").touch()
    assert at.end() == 0
    assert ["And then this." in at.said_to_model(i) for i in range(4)] == [False, False, False, True]
    assert at.result()["text"] == "Then: And then this."


def test_a_message_while_the_last_answer_comes_is_answered_before_the_end(desk: Build) -> None:
    at = desk({"text": "I think that is all there is to it.", "chunk_s": 0.2}, {"text": "Also: {{said}}"})
    at.start()
    at.wait_for("agent_message_chunk")
    at.say("One more thing.", id="m-1")
    assert at.end() == 0
    assert at.result()["text"] == "Also: One more thing."


def test_an_interrupt_stops_the_command_at_once_and_the_conversation_goes_on(desk: Build) -> None:
    sleeping = bash("echo $$ > pid; sleep 1000", wait_s=1000, timeout_s=2000)
    at = desk(
        {"calls": [*sleeping["calls"], *bash("echo never > never")["calls"]]},
        {"text": "You said {{said}}"},
    )
    at.start()
    at.wait_for("tool_call")
    eventually(lambda: (at.workspace / "pid").exists())
    at.signal(signal.SIGINT)
    at.wait_for("ask", lambda event: event.get("reason") == "interrupted")
    eventually(lambda: not at.wrappers())
    assert at.text("1.0") == "[a person interrupted it; it was ended]"
    assert at.text("1.1") == "Not done: a person interrupted you."
    at.say("Do something else.", id="m-1")
    assert at.end() == 0
    assert at.result()["text"] == "You said Do something else."
    assert not (at.workspace / "never").exists()


@pytest.mark.parametrize("api", APIS)
def test_an_interrupt_stops_the_model_and_what_it_had_said_is_kept_as_what_it_is(desk: Build, api: str) -> None:
    at = desk(
        {"text": "Once upon a time there was an agent.", "piece_chars": 10, "fault": {"hang_after_chunks": 5}},
        {"text": "You said {{said}}"},
        api=api,
    )
    at.start()
    at.wait_for("agent_message_chunk")
    at.signal(signal.SIGINT)
    at.wait_for("ask")
    cut = next(record for record in at.journal() if record.get("state") == "cut")
    assert cut["blocks"][0]["text"].startswith("Once upon")
    at.say("Stop telling stories.", id="m-1")
    assert at.end() == 0
    said = at.said_to_model()
    assert "Once upon" in said and "A person interrupted you here" in said and "Stop telling" in said
    assert at.result()["text"] == "You said Stop telling stories."


def test_an_interrupt_before_the_first_byte_and_between_tries(desk: Build) -> None:
    at = desk({"text": "x", "fault": {"hang": True}}, {"text": "never"}, {"match": "again", "text": "Fine."})
    at.start()
    eventually(lambda: len(at.requests()) == 1)
    at.signal(signal.SIGINT)
    at.wait_for("ask")
    at.say("Try again.", id="m-1")
    assert at.end() == 0
    assert at.result()["text"] == "Fine."


def test_after_an_interrupt_a_message_that_waits_is_taken_at_once(desk: Build) -> None:
    at = desk(LONG, {"text": "You said {{said}}"})
    at.start()
    at.wait_for("tool_call")
    at.say("Rather this.", id="m-1")
    at.wait_for("ack")
    at.signal(signal.SIGINT)
    assert at.end() == 0
    assert at.result()["text"] == "You said Rather this." and not at.of("ask")


def test_an_interrupted_one_sleeps_and_is_woken_by_a_message(desk: Build) -> None:
    at = desk(LONG, {"text": "You said {{said}}"})
    at.start(MESSAGE_WAIT_S="0.1")
    at.wait_for("tool_call")
    at.signal(signal.SIGINT)
    assert at.end() == 75
    at.start(EXECUTION_RESUMED="1")
    at.say("Good morning.", id="m-1")
    assert at.end() == 0
    assert at.result()["text"] == "You said Good morning."
    assert len(at.requests()) == 2


def test_a_question_ends_in_sleep_and_its_answer_wakes_it(desk: Build) -> None:
    at = desk(
        use("ask", question="Which colour?", options=["red", "blue"]),
        {"text": "So: {{said}}", "expect": "^blue$"},
    )
    assert at.run() == 75
    asked = at.of("ask")[0]
    assert asked["text"] == "Which colour?" and asked["options"] == ["red", "blue"]
    at.start(EXECUTION_RESUMED="1")
    at.say("blue", id="m-1")
    assert at.end() == 0
    assert at.result()["text"] == "So: blue"
    assert len(at.requests()) == 2


def test_woken_without_a_message_it_asks_again_and_sleeps(desk: Build) -> None:
    at = desk(use("ask", question="Which colour?"), {"text": "Done."})
    assert at.run() == 75
    at.start(EXECUTION_RESUMED="1")
    at.no_more()
    assert at.end() == 75
    assert len(at.of("ask")) == 2 and len(at.requests()) == 1


def test_an_answer_that_is_there_already_needs_no_sleep(desk: Build) -> None:
    at = desk(
        {"calls": [*LONG["calls"], {"name": "ask", "arguments": {"question": "Which colour?"}}]},
        {"text": "So: {{said}}"},
    )
    at.start()
    at.wait_for("tool_call")
    at.say("Take blue, by the way.", id="m-1")
    at.wait_for("ack")
    (at.workspace / "go").touch()
    assert at.end() == 0
    assert at.result()["text"] == "So: Take blue, by the way."


@pytest.mark.parametrize("how", ["signal", "line"])
def test_cancel_ends_it_and_its_commands_at_once(desk: Build, how: str) -> None:
    at = desk(bash("sleep 1000", wait_s=0), bash("sleep 1001", wait_s=500), {"text": "Done."})
    at.start()
    at.wait_for("tool_call", lambda event: event["id"] == "2.0")
    eventually(lambda: len(at.wrappers()) == 2)
    if how == "signal":
        at.signal(signal.SIGTERM)
    else:
        at.write(json.dumps({"type": "cancel"}).encode() + b"\n")
    assert at.end() == 143
    assert at.result()["stop_reason"] == "cancelled"
    eventually(lambda: not at.wrappers())
    at.journal()


def test_a_message_after_the_result_wakes_a_finished_one(desk: Build) -> None:
    at = desk({"text": "Done."}, {"text": "You said {{said}}"})
    assert at.run() == 0
    at.start(EXECUTION_RESUMED="1")
    at.say("More.", id="m-1")
    assert at.end() == 0
    assert at.result()["text"] == "You said More."


def test_killed_between_result_and_exit_it_says_its_result_again(desk: Build) -> None:
    at = desk({"text": "Done."})
    assert at.run() == 0
    at.start(EXECUTION_RESUMED="1")
    at.no_more()
    assert at.end() == 0
    assert [event["text"] for event in at.of("result")] == ["Done.", "Done."]
    assert len(at.requests()) == 1


def test_a_fork_with_a_task_of_its_own_goes_on_from_there(desk: Build) -> None:
    at = desk({"text": "Done."}, {"text": "You said {{said}}"})
    assert at.run() == 0
    assert at.run(EXECUTION_ID="exe_fork", TASK="Now something new.", EXECUTION_RESUMED="1") == 0
    assert at.result()["text"] == "You said Now something new."
    assert "Do it." in at.said_to_model()


def test_an_interrupt_while_a_job_is_polled_ends_the_job(desk: Build) -> None:
    at = desk(
        bash("sleep 1000", wait_s=0, timeout_s=2000),
        use("job", id="1.0", action="poll", wait_s=1000),
        {"text": "You said {{said}}"},
    )
    at.start()
    at.wait_for("tool_call", lambda event: event["id"] == "2.0")
    at.signal(signal.SIGINT)
    at.wait_for("ask")
    eventually(lambda: not at.wrappers())
    at.say("Stop that.", id="m-1")
    assert at.end() == 0
    assert at.result()["text"] == "You said Stop that."
