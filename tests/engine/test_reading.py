"""Frames to batches: whole, in order, bounded, and cut where a transition belongs."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import events
from orchestrator.engine.reading import BATCH_ENTRIES, Batch, Exit, Reading
from orchestrator.execution import Execution, Spec
from orchestrator.lifecycle import ExecutionState
from orchestrator.link import Frame


def reading(**record: Any) -> Reading:
    given_: dict[str, Any] = {"attempt": 1, **record}
    return Reading(Execution("exe_x", Spec(), ExecutionState.RUNNING, datetime.now(UTC), **given_))


def out(src: int, data: bytes = b"x\n", **fields: Any) -> Frame:
    return Frame("output", {"stream": "stdout", **fields}, data, src=src, time_ms=src)


def batches(read: Reading, *frames: Frame) -> list[Batch]:
    left, done = deque(frames), []
    while left:
        done.append(read.read(left))
    return done


def test_started_and_exit_end_a_batch() -> None:
    told = batches(
        reading(), Frame("started", {}, src=1), out(2), out(3), Frame("exit", {"code": 4, "inbox": 2}, src=4)
    )
    assert [(b.first_src, b.last_src, b.started, b.exit) for b in told] == [
        (1, 1, True, None),
        (2, 4, False, Exit(exit_code=4, inbox=2)),
    ]
    assert told[1].entries[-1].type == events.EXITED
    assert Exit.of(told[1].entries[-1].data) == told[1].exit


def test_what_was_told_before_is_not_told_again() -> None:
    (batch,) = batches(reading(src=2), out(1), out(2), out(3))
    assert (batch.first_src, batch.last_src, len(batch.entries)) == (3, 3, 1)


def test_a_gap_is_an_event_that_names_what_is_missing() -> None:
    (batch,) = batches(reading(src=4), Frame("gap", {"oldest_src": 9}), out(9))
    assert (batch.first_src, batch.last_src) == (5, 9)
    assert batch.entries[0].type == events.HISTORY_GAP
    assert (batch.entries[0].data["first_src"], batch.entries[0].data["last_src"], batch.entries[0].src) == (5, 8, 8)


def test_a_hole_without_a_gap_begins_a_batch_of_its_own() -> None:
    told = batches(reading(), out(1), out(3))
    assert [(b.first_src, b.last_src) for b in told] == [(1, 1), (3, 3)]


def test_receipts() -> None:
    read = reading(output_mode="jsonl")
    read.know("m1", 1)
    read.know("m2", 2)
    (batch,) = batches(
        read,
        Frame("delivered", {"n": 1, "id": "m1"}, src=1),
        Frame("delivered", {"n": 2, "id": "m2"}, src=2),
        out(3, b'{"type":"ack","id":"m2"}\n{"type":"ack","id":"nobody"}\n'),
    )
    assert (batch.delivered, batch.consumed) == (2, 2)
    assert [e.type for e in batch.entries] == [
        events.MESSAGE_DELIVERED,
        events.MESSAGE_DELIVERED,
        "ack",
        events.MESSAGE_CONSUMED,
        "ack",
    ]
    assert batch.entries[3].data == {"n": 2, "id": "m2"}
    assert batch.entries[3].source == "platform"


def test_a_message_delivered_again_is_marked() -> None:
    (batch,) = batches(reading(attempt=2, delivered=3), Frame("delivered", {"n": 2, "id": "b"}, src=1))
    assert batch.entries[0].data == {"n": 2, "id": "b", "redelivered": True}
    assert batch.delivered == 3


def test_an_adopted_reading_asks_for_ids_before_an_ack_only() -> None:
    read = reading(output_mode="jsonl", delivered=2)
    assert not read.unresolved(deque([out(1, b'{"type":"plan"}\n')]))
    assert read.unresolved(deque([out(1, b'{"type":"ack","id":"a"}\n')]))
    assert not reading(delivered=2, consumed=2).unresolved(deque([out(1, b'{"type":"ack","id":"a"}\n')]))


def test_the_first_line_decides() -> None:
    typed_first = reading()
    (batch,) = batches(typed_first, out(1, b"\n \n"), out(2, b'{"type":"plan"}\nno\n'))
    assert batch.output_mode == "jsonl"
    assert [e.type for e in batch.entries] == ["output", "plan", "output"]
    other = reading()
    (batch,) = batches(other, out(1, b'{"type":"what"}\n{"type":"plan"}\n'), out(2, b'{"type":"plan"}\n'))
    assert batch.output_mode == "bytes"
    assert [e.type for e in batch.entries] == ["output", "output"]


@pytest.mark.parametrize(("declared", "types"), [("jsonl", ["output", "plan"]), ("bytes", ["output"])])
def test_what_was_declared_needs_no_first_line(declared: str, types: list[str]) -> None:
    started = Frame("started", {"output": declared}, src=1)
    first, second = batches(reading(), started, out(2, b'a banner\n{"type":"plan"}\n'))
    assert first.output_mode == declared
    assert [e.type for e in second.entries] == types


def test_a_cut_line_is_output_on_both_sides() -> None:
    read = reading(output_mode="jsonl")
    (batch,) = batches(
        read,
        out(1, b'{"type":"plan"}\n{"type":"pl', partial=True),
        out(2, b"an", partial=True),
        out(3, b'"}\n{"type":"plan"}\n'),
    )
    assert [(e.type, e.body) for e in batch.entries] == [
        ("plan", None),
        ("output", b'{"type":"pl'),
        ("output", b"an"),
        ("output", b'"}\n'),
        ("plan", None),
    ]


def test_stderr_is_never_typed() -> None:
    frame = Frame("output", {"stream": "stderr"}, b'{"type":"plan"}\n', src=1)
    (batch,) = batches(reading(output_mode="jsonl"), frame)
    assert [(e.type, e.data["stream"]) for e in batch.entries] == [("output", "stderr")]


def test_an_interrupt_has_its_receipt_and_other_signals_none() -> None:
    (batch,) = batches(
        reading(),
        Frame("signalled", {"id": "interrupt:i7", "signum": 2, "sent": True}, src=1),
        Frame("signalled", {"id": "stop", "signum": 15, "sent": True}, src=2),
    )
    assert batch.interrupts == ["i7"]
    assert [(e.type, e.data["id"]) for e in batch.entries] == [(events.INTERRUPTED, "i7")]
    assert batch.last_src == 2


def test_a_command_that_could_not_be_executed() -> None:
    (batch,) = batches(
        reading(),
        Frame("note", {"what": "exec_failed", "errno": 2, "why": "No such file"}, src=1),
        Frame("exit", {"code": 127}, src=2),
    )
    assert batch.exit == Exit(exit_code=127, unstarted="No such file")


lines = st.lists(st.sampled_from([b'{"type":"plan"}\n', b"text\n", b'{"type":"ack","id":"m"}\n']), max_size=400)


@given(st.lists(lines.map(b"".join).filter(bool), min_size=1, max_size=30))
def test_batches_are_bounded_and_whole(payloads: list[bytes]) -> None:
    read = reading(output_mode="jsonl")
    frames = [out(n + 1, payload) for n, payload in enumerate(payloads)]
    told = batches(read, *frames)
    assert all(len(batch.entries) <= BATCH_ENTRIES for batch in told)
    assert [batch.first_src for batch in told] == [1, *(batch.last_src + 1 for batch in told[:-1])]
    assert told[-1].last_src == len(frames)
    for batch in told:
        assert all(batch.first_src <= entry.src <= batch.last_src for entry in batch.entries)
        assert [entry.src for entry in batch.entries] == sorted(entry.src for entry in batch.entries)
