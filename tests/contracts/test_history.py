"""The contract of `orchestrator.history.History`: appending, reading, following."""

from __future__ import annotations

import asyncio
import random

import pytest

from orchestrator.errors import Closed, Conflict, Fenced, Gone, NotFound, Resend
from orchestrator.events import Cursor, Entry, Event
from orchestrator.history import Lease
from orchestrator.lifecycle import ExecutionState, IllegalTransition, Trigger
from tests.contracts.redis_store import SUCCEEDED, Store, lines


async def everything(store: Store, execution_id: str = "exe_a") -> list[Event]:
    cursor = Cursor()
    events: list[Event] = []
    while True:
        page = await store.history.read(execution_id, cursor)
        events += page.events
        if not page.events or cursor.seq == page.tail:
            return events
        cursor = page.next


class TestAppend:
    async def test_frames_get_the_next_seqs(self, store: Store) -> None:
        lease = await store.running()
        before = (await store.history.tail("exe_a")).tail
        done = await store.history.append(lease, attempt=1, spooled=lines(1, 3))
        assert (done.tail, done.src, done.repeated) == (before + 3, 3, False)
        events = (await store.history.read("exe_a", Cursor(1, before))).events
        assert [(e.seq, e.type, e.attempt, e.source, e.body) for e in events] == [
            (before + n, "output", 1, "harness", f"line {n}\n".encode()) for n in (1, 2, 3)
        ]

    async def test_seq_is_contiguous_from_1(self, store: Store) -> None:
        lease = await store.running()
        for first in (1, 11, 21):
            await store.history.append(lease, attempt=1, spooled=lines(first, first + 9))
        await store.finish(lease, own=3)
        events = await everything(store)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        assert events[0].type == "execution.submitted"

    async def test_frames_sent_again_are_dropped(self, store: Store) -> None:
        lease = await store.running()
        first = await store.history.append(lease, attempt=1, spooled=lines(1, 5))
        again = await store.history.append(lease, attempt=1, spooled=lines(1, 5))
        assert (again.tail, again.repeated) == (first.tail, True)
        overlap = await store.history.append(lease, attempt=1, spooled=lines(3, 8))
        assert (overlap.tail, overlap.src, overlap.repeated) == (first.tail + 3, 8, False)
        assert [e.body for e in await everything(store) if e.body] == [f"line {n}\n".encode() for n in range(1, 9)]

    async def test_missing_frames_are_asked_for(self, store: Store) -> None:
        lease = await store.running()
        await store.history.append(lease, attempt=1, spooled=lines(1, 5))
        with pytest.raises(Resend) as refused:
            await store.history.append(lease, attempt=1, spooled=lines(7, 9))
        assert refused.value.src == 6

    async def test_own_counts_once(self, store: Store) -> None:
        lease = await store.running()
        entry = Entry("sandbox.held", {"spool_bytes": 1})
        first = await store.history.append(lease, attempt=1, own=3, entries=[entry])
        again = await store.history.append(lease, attempt=1, own=3, entries=[entry])
        assert not first.repeated
        assert again.repeated
        assert (await store.history.tail("exe_a")).tail == first.tail == again.tail

    async def test_another_epoch_is_fenced(self, store: Store) -> None:
        lease = await store.running()
        await store.pass_time(60)
        other = (await store.claimed("w2")).lease
        assert other.epoch == lease.epoch + 1
        with pytest.raises(Fenced) as refused:
            await store.history.append(lease, attempt=1, spooled=lines(1, 1))
        assert refused.value.data["epoch"] == other.epoch
        await store.history.append(other, attempt=1, spooled=lines(1, 1))

    async def test_after_the_end_it_is_closed(self, store: Store) -> None:
        lease = await store.running()
        end = await store.finish(lease, own=3)
        with pytest.raises(Closed) as refused:
            await store.history.append(lease, attempt=1, spooled=lines(1, 1))
        assert refused.value.data["tail"] == end.tail
        again = await store.move(lease, Trigger.STOPPED, own=4, outcome=SUCCEEDED)
        assert (again.repeated, again.tail, again.state) == (True, end.tail, ExecutionState.FINISHED)

    async def test_the_state_must_be_the_expected_one(self, store: Store) -> None:
        lease = await store.running()
        before = (await store.history.tail("exe_a")).tail
        with pytest.raises(Conflict):
            await store.move(lease, Trigger.RESUME, own=3, expects=ExecutionState.PAUSED)
        with pytest.raises(IllegalTransition):
            await store.move(lease, Trigger.RESUME, own=3)
        assert (await store.history.tail("exe_a")).tail == before

    async def test_unknown_execution(self, store: Store) -> None:
        with pytest.raises(NotFound):
            await store.history.append(Lease("exe_none", 1, "w1", 15.0), attempt=1, spooled=lines(1, 1))


class TestRead:
    async def test_pages_end_where_asked(self, store: Store) -> None:
        lease = await store.running()
        for first in range(1, 1000, 250):
            await store.history.append(lease, attempt=1, spooled=lines(first, first + 249))
        tail = (await store.history.tail("exe_a")).tail
        cursor, seen = Cursor(), []
        while cursor.seq < tail:
            page = await store.history.read("exe_a", cursor, limit=300)
            assert 0 < len(page.events) <= 300
            seen += [e.seq for e in page.events]
            cursor = page.next
        assert seen == list(range(1, tail + 1))

    async def test_the_end_is_said(self, store: Store) -> None:
        lease = await store.running()
        assert not (await store.history.read("exe_a", Cursor())).closed
        end = await store.finish(lease, own=3)
        page = await store.history.read("exe_a", Cursor())
        assert page.closed
        assert page.events[-1].type == "execution.finished"
        assert page.events[-1].data["outcome"]["kind"] == "SUCCEEDED"
        assert (await store.history.read("exe_a", Cursor(1, end.tail))).closed
        assert not (await store.history.read("exe_a", Cursor(), limit=2)).closed

    async def test_places_that_are_not_there(self, store: Store) -> None:
        await store.running()
        for cursor in (Cursor(1, 99), Cursor(2, 0)):
            with pytest.raises(Gone):
                await store.history.read("exe_a", cursor)
        with pytest.raises(NotFound):
            await store.history.read("exe_none", Cursor())


class TestFollow:
    async def test_history_then_live_then_end(self, store: Store) -> None:
        lease = await store.running()
        seen: list[int] = []
        up_to_date = asyncio.Event()

        async def watch() -> None:
            async for page in store.history.follow("exe_a", Cursor(1, 4)):
                seen.extend(e.seq for e in page.events)
                up_to_date.set()
                closed = page.closed
            assert closed

        watching = asyncio.create_task(watch())
        await up_to_date.wait()
        for src in range(1, 6):
            await store.history.append(lease, attempt=1, spooled=lines(src, src))
        end = await store.finish(lease, own=3)
        await watching
        assert seen == list(range(5, end.tail + 1))

    async def test_fifty_come_and_go_without_gap_or_repeat(self, store: Store) -> None:
        lease = await store.running()
        dice = random.Random(7)

        async def watch() -> list[int]:
            seen: list[int] = []
            cursor = Cursor()
            while True:
                leave_after = dice.randint(1, 12)
                follower = store.history.follow("exe_a", cursor, max_bytes=dice.choice((1000, 20_000, 1 << 20)))
                async for page in follower:
                    seen += [e.seq for e in page.events]
                    cursor = page.next if page.events else cursor
                    if page.closed:
                        return seen
                    leave_after -= 1
                    if leave_after == 0:
                        break
                await follower.aclose()  # type: ignore[attr-defined]

        watchers = [asyncio.create_task(watch()) for _ in range(50)]
        for first in range(1, 5001, 50):
            await store.history.append(lease, attempt=1, spooled=lines(first, first + 49))
        end = await store.finish(lease, own=3)
        for seen in await asyncio.gather(*watchers):
            assert seen == list(range(1, end.tail + 1))
