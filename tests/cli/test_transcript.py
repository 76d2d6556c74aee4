"""A history as it reads: what an agent says on stdout, what it does on stderr; a plain program's bytes untouched."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.transcript import OUTPUT_LINES, Transcript
from orchestrator.events import HARNESS_TYPES, Event, Source

BOTH = frozenset({"stdout", "stderr"})


def event(type: str, *, source: Source = "harness", body: bytes | None = None, **data: Any) -> Event:
    return Event(1, type, datetime(2025, 1, 1, tzinfo=UTC), 1, source, data, body)


def read(*events: Event, colour: bool = False) -> tuple[str, str]:
    """(stdout, stderr)."""
    pieces = list(Transcript(BOTH, colour=colour).pieces(events))
    return tuple("".join(data.decode() for to, data in pieces if to == number) for number in (1, 2))  # type: ignore[return-value]


def test_words_go_out_as_they_come_and_a_line_is_ended_before_something_else() -> None:
    out, err = read(
        event("agent_thought_chunk", text="hm"),
        event("agent_thought_chunk", text=" well"),
        event("agent_message_chunk", text="I lo"),
        event("agent_message_chunk", text="ok."),
        event("tool_call", id="1", name="bash", arguments={"command": "ls\necho x"}),
        event("agent_message_chunk", text="Done.\n"),
        event("execution.finished", source="platform", outcome={}),
    )
    assert out == "I look.\nDone.\n"
    assert err == "· hm well\n$ ls\n  echo x\n"


def test_what_somebody_says_waits_for_the_end_of_a_word() -> None:
    _, err = read(
        event("agent_thought_chunk", text="it comes in per"),
        event("message.accepted", source="platform", n=1, id="x", text="hello"),
        event("agent_thought_chunk", text="cent"),
        event("tool_call", id="1", name="bash", arguments={"command": "ls"}),
    )
    assert err == "· it comes in percent\n> hello\n$ ls\n"


def test_what_was_told_again_after_a_broken_answer_begins_a_line() -> None:
    out, _ = read(
        event("agent_message_chunk", message="m1", at=0, text="I will "),
        event("agent_message_chunk", message="m1", at=7, text="loo"),
        event("agent_message_chunk", message="m1", at=0, text="Let us look."),
        event("agent_message_chunk", message="m2", at=0, text="Next."),
        event("result", stop_reason="end_turn", text="Next."),
    )
    assert out == "I will loo\nLet us look.\nNext.\n"


def test_what_another_attempt_tells_again_is_shown_once() -> None:
    once = [
        event("agent_message_chunk", message="m1", at=0, text="Hello, "),
        event("agent_message_chunk", message="m1", at=7, text="wor"),
    ]
    out, _ = read(*once, *once, event("agent_message_chunk", message="m1", at=10, text="ld."))
    assert out == "Hello, world."


def test_a_calls_output_is_shown_once_and_bounded() -> None:
    lines = "".join(f"line {number}\n" for number in range(OUTPUT_LINES + 7))
    _, live = read(
        event("tool_call_update", id="1", status="in_progress", output=lines),
        event("tool_call_update", id="1", status="completed", text=lines),
    )
    _, late = read(event("tool_call_update", id="1", status="completed", text=lines))
    assert live == late
    assert live.splitlines() == [f"  line {number}" for number in range(OUTPUT_LINES)] + ["  … 7 more lines"]


def test_a_failure_says_why() -> None:
    _, err = read(event("tool_call_update", id="1", status="failed", text="no such file\n[exit code 2]"))
    assert err == "  no such file\n  ✗ failed: [exit code 2]\n"
    _, err = read(
        event("tool_call_update", id="1", status="in_progress", output="no such file\n"),
        event("tool_call_update", id="1", status="failed", text="no such file\n[exit code 2]"),
    )
    assert err == "  no such file\n  ✗ failed: [exit code 2]\n"


def test_questions_plans_and_ends() -> None:
    out, err = read(
        event("ask", id="1", text="Which one?", options=["a", "b"]),
        event("plan", entries=[{"content": "look", "status": "completed"}, {"content": "mend", "status": "pending"}]),
        event("progress", text="asking again"),
        event("error", text="no such model"),
        event("result", stop_reason="max_steps", text="I got as far as here."),
    )
    assert out == "Which one? (a | b)\nI got as far as here.\n"
    assert err == ("  → carrel send @last '…'\n  ✓ look\n  · mend\n· asking again\n! no such model\nended: max_steps\n")


def test_what_the_platform_says_of_an_agent_and_what_it_cost() -> None:
    usage: dict[str, Any] = {"input_tokens": 1000, "output_tokens": 10, "cache_read_tokens": 0, "cache_write_tokens": 0}
    platform = [
        event("usage", source="platform", **usage, cost_micros=2500),
        event("usage", source="platform", **usage, cost_micros=0, replayed=True),
        event("egress.refused", source="platform", host="evil.example", port=443, why="not in the allowlist"),
        event("message.accepted", source="platform", n=1, id="x", text="and\nhurry"),
        event("budget.exceeded", source="platform", spent_micros=90, limit_micros=100, limit_tokens=None),
        event("intent.in_doubt", source="platform", key="call 7", kind="bash", summary="rm -r x"),
        event("sandbox.lost", source="platform", reason="harness_killed", detail="signal 9"),
        event("execution.finished", source="platform", outcome={}),
    ]
    assert read(*platform) == ("", "")  # of a plain program there is nothing but its own bytes
    _, err = read(event("agent_message_chunk", text="x\n"), *platform)
    assert err.splitlines() == [
        "! evil.example:443 refused: not in the allowlist",
        "> and\\x0ahurry",
        "! over budget: $0.0001 spent of $0.0001",
        "  it is to end → carrel update @last --budget-usd … --budget-tokens …",
        "? in doubt, was it done? rm -r x",
        "  → carrel settle @last 'call 7' retry|done|fail",
        "! this attempt is over (harness_killed: signal 9)",
        "· 2 model calls, 1 of them replayed, 1,010 tokens, $0.0025",
    ]


@pytest.mark.parametrize("colour", [False, True])
def test_nothing_an_agent_says_steers_the_terminal(colour: bool) -> None:
    evil = "\x1b]52;c;AAAA\x07\x9b31m\u202e\r"
    events = [
        event(type, text=evil, id="1", status="failed", output=evil) for type in sorted(HARNESS_TYPES - {"output"})
    ]
    events += [
        event("tool_call", id=evil, title=evil, arguments={"command": evil}),
        event("agent_thought_chunk", text=evil),
    ]
    events += [event("plan", entries=[{"content": evil, "status": evil}]), event("ask", text=evil, options=[evil])]
    for said in read(*events, colour=colour):
        for ours in ("\x1b[1m", "\x1b[2m", "\x1b[0m"):
            said = said.replace(ours, "")
        assert not set(said) & set("\x1b\x07\x9b\u202e\r")


ANY = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))
FIELDS = st.sampled_from(["text", "id", "at", "message", "status", "output", "entries", "options", "arguments", "name"])
DATA = st.dictionaries(FIELDS, ANY | st.dictionaries(FIELDS, ANY))


@given(st.lists(st.tuples(st.sampled_from(sorted(HARNESS_TYPES)), DATA), max_size=6))
def test_whatever_a_harness_puts_into_its_fields_is_shown_or_left_out(said: list[tuple[str, dict[str, Any]]]) -> None:
    events = [Event(1, type, datetime(2025, 1, 1, tzinfo=UTC), 1, "harness", data) for type, data in said]
    for _, data in Transcript(BOTH, colour=True).pieces(events):
        assert data
