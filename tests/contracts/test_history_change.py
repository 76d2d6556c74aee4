"""The contract of `History.append`'s finer points: attempts, bodies, limits, and what a Change may and may not do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestrator.errors import BadInput, Conflict, Fenced
from orchestrator.events import Cursor, Entry, Event
from orchestrator.execution import OutcomeKind
from orchestrator.history import Change, Spooled
from orchestrator.lifecycle import ExecutionState, Trigger
from tests.contracts.redis_store import SUCCEEDED, Store, lines


async def after(store: Store, seq: int) -> list[Event]:
    return list((await store.history.read("exe_a", Cursor(1, seq))).events)


class TestEntries:
    async def test_bytes_and_text_come_back_as_they_were(self, store: Store) -> None:
        lease = await store.running()
        entries = [
            Entry("output", {"stream": "stderr"}, b"\x00\xff\r\n", "harness", 1, 1_763_725_000_123),
            Entry("output", {"stream": "stdout"}, b"", "harness", 2),
            Entry("agent_message_chunk", {"text": "ü - 0 1 h - x", "n": [1, None, {"a": 1.5}]}, None, "harness", 3),
            Entry("output", {"stream": "stdout", "more": True}, b"x", "harness", 3),
        ]
        await store.history.append(lease, attempt=1, spooled=Spooled(1, 3, entries))
        events = await after(store, 4)
        assert [(e.type, e.data, e.body, e.source) for e in events] == [
            (e.type, dict(e.data), e.body, e.source) for e in entries
        ]
        assert events[0].time == datetime.fromtimestamp(1_763_725_000.123, UTC)
        created = (await store.executions.get("exe_a")).created_at
        assert all(0 <= (e.time - created).total_seconds() < 60 for e in events[1:])

    async def test_frames_that_yield_nothing_count(self, store: Store) -> None:
        lease = await store.running()
        done = await store.history.append(lease, attempt=1, spooled=Spooled(1, 7, ()))
        assert (done.src, done.tail) == (7, 4)
        again = await store.history.append(lease, attempt=1, spooled=Spooled(1, 7, ()))
        assert again.repeated
        await store.history.append(lease, attempt=1, spooled=lines(8, 8))

    async def test_frames_come_before_the_workers_own(self, store: Store) -> None:
        lease = await store.running()
        await store.history.append(
            lease,
            attempt=1,
            spooled=lines(1, 2),
            own=3,
            entries=[Entry("execution.exited", {"exit_code": 0})],
            change=Change(trigger=Trigger.EXITED),
        )
        assert [e.type for e in await after(store, 4)] == ["output", "output", "execution.exited", "execution.state"]

    async def test_limits(self, store: Store) -> None:
        lease = await store.running()
        for spooled in (lines(1, 4097), Spooled(1, 1, [Entry("output", {}, b"x" * (4 << 20), "harness", 1)])):
            with pytest.raises(BadInput) as refused:
                await store.history.append(lease, attempt=1, spooled=spooled)
            assert refused.value.field == "entries"
        await store.history.append(lease, attempt=1, spooled=lines(1, 4096))

    async def test_own_is_asked_for(self, store: Store) -> None:
        lease = await store.running()
        with pytest.raises(ValueError, match="own"):
            await store.history.append(lease, attempt=1, entries=[Entry("sandbox.held", {})])
        with pytest.raises(ValueError, match="own"):
            await store.history.append(lease, attempt=1, change=Change(failures=0))
        await store.history.append(lease, attempt=1, change=Change(delivered=1, consumed=1, output_mode="jsonl"))


class TestAttempts:
    async def test_each_begins_its_own_frames(self, store: Store) -> None:
        lease = await store.running()
        await store.history.append(lease, attempt=1, spooled=lines(1, 5))
        await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1)
        lease = (await store.claimed()).lease
        await store.place(lease, own=1, attempt=2)
        record = await store.executions.get("exe_a")
        assert (record.attempt, record.src, record.sandbox_id) == (2, 0, "sbx_exe_a_2")
        before = record.tail
        late = await store.history.append(lease, attempt=1, spooled=lines(6, 9))
        assert (late.repeated, late.tail, late.src) == (True, before, 0)  # what is over adds nothing
        with pytest.raises(Conflict):
            await store.history.append(lease, attempt=3, spooled=lines(1, 1))
        await store.history.append(lease, attempt=2, spooled=lines(1, 2))
        assert [e.attempt for e in await after(store, before)] == [2, 2]

    async def test_none_comes_back(self, store: Store) -> None:
        lease = await store.running()
        with pytest.raises(Conflict):
            await store.history.append(lease, attempt=0, own=3, change=Change(attempt=0))


class TestChange:
    async def test_cursors_only_rise(self, store: Store) -> None:
        lease = await store.running()
        for delivered, consumed in ((3, 2), (1, 1), (2, 3)):
            await store.history.append(lease, attempt=1, change=Change(delivered=delivered, consumed=consumed))
        record = await store.executions.get("exe_a")
        assert (record.delivered, record.consumed) == (3, 3)

    async def test_started_is_the_first_time(self, store: Store) -> None:
        lease = await store.running()
        first = (await store.executions.get("exe_a")).started_at
        assert first is not None
        await store.history.append(lease, attempt=1, own=3, change=Change(started=True, failures=2))
        record = await store.executions.get("exe_a")
        assert (record.started_at, record.failures) == (first, 2)

    async def test_at_rest_until_it_moves(self, store: Store) -> None:
        lease = await store.running()
        for own, frozen in ((3, True), (4, False), (5, True)):
            done = await store.history.append(lease, attempt=1, own=own, change=Change(frozen=frozen))
            record = await store.executions.get("exe_a")
            assert (record.frozen, done.tail) == (frozen, 4), "no event: nothing of the work changed"
        await store.history.append(lease, attempt=1, own=6, change=Change(failures=1))
        assert (await store.executions.get("exe_a")).frozen
        await store.move(lease, Trigger.PAUSE, own=7)
        assert not (await store.executions.get("exe_a")).frozen

    async def test_given_up_is_given_up(self, store: Store) -> None:
        lease = await store.running()
        await store.history.append(lease, attempt=1, own=3, change=Change(unowned=True))
        with pytest.raises(Fenced):
            await store.history.append(lease, attempt=1, spooled=lines(1, 1))
        with pytest.raises(Fenced):
            await store.executions.renew(lease)
        again = await store.history.append(lease, attempt=1, own=3, change=Change(unowned=True))
        assert again.repeated
        claim = await store.claimed("w2")
        assert (claim.execution.state, claim.lease.epoch) == (ExecutionState.RUNNING, lease.epoch + 1)

    async def test_outcome_and_end_go_together(self, store: Store) -> None:
        lease = await store.running()
        with pytest.raises(ValueError, match="outcome"):
            await store.move(lease, Trigger.EXITED, own=3, outcome=SUCCEEDED)
        await store.move(lease, Trigger.EXITED, own=3)
        with pytest.raises(ValueError, match="outcome"):
            await store.move(lease, Trigger.STOPPED, own=4)
        end = await store.move(lease, Trigger.STOPPED, own=4, outcome=SUCCEEDED)
        (last,) = await store.server.ask("XREVRANGE", store.keys.history("exe_a"), "+", "-", "COUNT", 1)
        assert last[0].decode() == f"{end.tail}-1"
        record = await store.executions.get("exe_a")
        assert record.ended
        assert record.outcome is not None
        assert (record.outcome.kind, record.outcome.exit_code, record.owner) == (OutcomeKind.SUCCEEDED, 0, None)
        assert record.finished_at is not None

    async def test_every_transition_is_one_event(self, store: Store) -> None:
        lease = await store.running()
        await store.move(lease, Trigger.PAUSE, own=3)
        await store.move(lease, Trigger.RESUME, own=4)
        await store.finish(lease, own=5)
        moves = [e.data for e in await after(store, 0) if e.type == "execution.state"]
        assert [(m["from"], m["to"], m["trigger"]) for m in moves] == [
            ("QUEUED", "STARTING", "claimed"),
            ("STARTING", "RUNNING", "harness_started"),
            ("RUNNING", "PAUSED", "pause"),
            ("PAUSED", "RUNNING", "resume"),
            ("RUNNING", "STOPPING", "exited"),
            ("STOPPING", "FINISHED", "stopped"),
        ]
        assert moves[0]["owner"] == "w1"
        assert moves[0]["attempt"] == moves[1]["attempt"] == 1
