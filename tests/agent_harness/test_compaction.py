"""Room in the context: summed up before it overflows, and when it has; the transcript stays whole."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from agent_harness import compaction
from tests.agent_harness.desk import APIS, Desk, bash, eventually

Build = Callable[..., Desk]
SUMMARY = {"match": "too long to go on with", "text": "So far: five steps. [[turn:5]]"}


@pytest.mark.parametrize("api", APIS)
def test_a_long_conversation_is_summed_up_and_goes_on(desk: Build, api: str) -> None:
    at = desk(
        *[bash(f"echo step {i} >> ../marks; seq {i} 3000") for i in range(8)],
        {"text": "Done."},
        {**SUMMARY, "text": "So far so good. [[turn:6]]"},
        api=api,
        task="Count, in eight steps.",
    )
    assert at.run(CONTEXT_TOKENS="24000") == 0
    assert at.result()["text"] == "Done."
    assert len(at.of("compaction")) >= 1
    after = next(i for i, r in enumerate(at.requests()) if "So far so good" in json.dumps(r["body"]))
    said = at.said_to_model(after)
    assert "Count, in eight steps." in said and "step 0" not in said
    assert len(said) < 24_000 * 4
    marks = (at.folder / "marks").read_text().splitlines()
    assert marks[0] == "step 0" and marks[-1] == "step 7" and len(set(marks)) == len(marks)
    journal = (at.state / "journal.jsonl").read_text()
    assert all(f"echo {mark} >> ../marks" in journal for mark in marks)  # the transcript stays whole


def test_an_overflow_that_the_provider_says_is_met_in_the_same_way(desk: Build) -> None:
    at = desk(
        *[bash(f"echo {i}") for i in range(5)],
        {"text": "x", "expect": "prompt is too long: it cannot match"},
        {"match": "So far: five", "text": "Done."},
        SUMMARY,
    )
    assert at.run() == 0
    assert at.result()["text"] == "Done." and len(at.of("compaction")) == 1


def test_messages_of_people_survive_it_word_by_word(desk: Build) -> None:
    at = desk(
        {"calls": [{"name": "bash", "arguments": {"command": "while [ ! -e go ]; do sleep 0.02; done"}}]},
        *[bash(f"seq {i} 3000") for i in range(6)],
        {"match": "too long to go on with", "text": "Short. [[turn:7]]"},
    )
    at.start(CONTEXT_TOKENS="24000")
    at.wait_for("tool_call")
    at.say("Never touch the file named secret-plans.txt!", id="m-1")
    at.wait_for("ack")
    (at.workspace / "go").touch()
    assert at.end() == 0
    assert "Never touch the file named secret-plans.txt!" in at.said_to_model()


def test_killed_in_the_middle_of_it(desk: Build) -> None:
    at = desk(
        *[bash(f"seq {i} 3000") for i in range(6)],
        {"text": "Done."},
        {"match": "too long to go on with", "text": "Short. [[turn:6]]", "fault": {"hang": True}},
    )
    at.start(CONTEXT_TOKENS="24000")
    eventually(lambda: bool(at.requests()) and "too long to go on with" in at.said_to_model())
    n = len(at.requests())
    at.kill()
    assert at.run(CONTEXT_TOKENS="24000", EXECUTION_RESUMED="1") == 0
    assert at.requests()[n]["body"] == at.requests()[n - 1]["body"]
    assert at.result()["text"] == "Done."


def test_windows() -> None:
    assert compaction.window("claude-sonnet-4-5", None) == 200_000
    assert compaction.window("gpt-5-mini", None) == 272_000
    assert compaction.window("somebody's", None) == compaction.DEFAULT_WINDOW
    assert compaction.window("claude-sonnet-4-5", 9_000) == 9_000


def test_what_stays_is_whole_turns_of_the_end() -> None:
    items = [{"role": "user", "text": "task"}]
    for n in range(1, 11):
        items.append({"role": "assistant", "n": n, "blocks": []})  # type: ignore[dict-item]
        items.append({"role": "tool", "id": "x", "text": "y" * 3000, "ok": True})  # type: ignore[dict-item]
    keep = compaction.keep_from(items, 20_000)
    assert 8 <= keep <= 10
    assert compaction.keep_from(items, 100) == 11  # nothing fits: nothing stays
