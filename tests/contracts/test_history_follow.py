"""The contract of `History.follow` beyond the common case: many, slow, late, and histories that end under them."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.errors import Gone, NotFound
from orchestrator.events import Cursor, Entry, Event
from orchestrator.history import Page, Spooled
from tests.contracts.redis_store import Store, lines


class TestFollow:
    async def test_up_to_date_is_said_at_once(self, store: Store) -> None:
        await store.running()
        tail = (await store.history.tail("exe_a")).tail
        page = await anext(store.history.follow("exe_a", Cursor(1, tail)))
        assert (page.events, page.tail, page.closed) == ((), tail, False)

    async def test_one_that_has_ended(self, store: Store) -> None:
        lease = await store.running()
        end = await store.finish(lease, own=3)
        pages = [page async for page in store.history.follow("exe_a", Cursor())]
        assert pages[-1].closed
        assert [e.seq for page in pages for e in page.events] == list(range(1, end.tail + 1))
        pages = [page async for page in store.history.follow("exe_a", Cursor(1, end.tail))]
        assert [(page.events, page.closed) for page in pages] == [((), True)]

    async def test_errors_as_read(self, store: Store) -> None:
        await store.running()
        for execution_id, cursor, error in (
            ("exe_none", Cursor(), NotFound),
            ("exe_a", Cursor(1, 99), Gone),
            ("exe_a", Cursor(2, 0), Gone),
        ):
            with pytest.raises(error):
                await anext(store.history.follow(execution_id, cursor))

    async def test_a_hundred_share_one_reader(self, store: Store) -> None:
        lease = await store.running()
        ready = asyncio.Barrier(101)
        reading: list[int] = []

        async def watch() -> list[Event]:
            seen: list[Event] = []
            async for page in store.history.follow("exe_a", Cursor()):
                if not seen:
                    await ready.wait()
                seen += page.events
            return seen

        watchers = [asyncio.create_task(watch()) for _ in range(100)]
        await ready.wait()
        for src in range(1, 51):
            await store.history.append(lease, attempt=1, spooled=lines(src, src))
            told = (await store.server.ask("CLIENT", "LIST")).decode()
            reading.append(sum("cmd=xread" in line for line in told.splitlines()))
        assert store.history.readers == 1
        # The server is this worker's alone, and runs one test at a time.
        assert max(reading) == 1
        end = await store.finish(lease, own=3)
        for seen in await asyncio.gather(*watchers):
            assert [e.seq for e in seen] == list(range(1, end.tail + 1))
        assert store.history.readers == 0

    async def test_pages_stay_small_and_a_slow_one_loses_nothing(self, store: Store) -> None:
        """It takes one page, lets 20 MB go by, and reads on from its cursor. The other one is not held up."""
        lease = await store.running()
        slow = store.history.follow("exe_a", Cursor(), max_bytes=300_000)
        first = await anext(slow)

        async def quick() -> int:
            count = 0
            async for page in store.history.follow("exe_a", Cursor(), max_bytes=300_000):
                count += len(page.events)
            return count

        other = asyncio.create_task(quick())
        body = b"x" * 65_536
        for first_src in range(1, 321, 32):
            frames = [
                Entry("output", {"stream": "stdout"}, body, "harness", src) for src in range(first_src, first_src + 32)
            ]
            await store.history.append(lease, attempt=1, spooled=Spooled(first_src, first_src + 31, frames))
        end = await store.finish(lease, own=3)
        assert await other == end.tail
        seen = [e.seq for e in first.events]
        async for page in slow:
            assert sum(len(e.body or b"") for e in page.events) <= 300_000
            seen += [e.seq for e in page.events]
        assert seen == list(range(1, end.tail + 1))

    async def test_what_was_trimmed_is_said(self, store: Store) -> None:
        """XREAD and XRANGE skip a trimmed range silently; the reader must not."""
        lease = await store.running()
        tail = (await store.history.tail("exe_a")).tail
        late = store.history.follow("exe_a", Cursor(1, tail))
        await anext(late)
        await store.history.append(lease, attempt=1, spooled=lines(1, 100))
        await store.server.ask("XTRIM", store.keys.history("exe_a"), "MINID", f"{tail + 51}-0")
        for attempt in (
            store.history.read("exe_a", Cursor()),
            store.history.read("exe_a", Cursor(1, tail + 49)),
        ):
            with pytest.raises(Gone) as refused:
                await attempt
            assert refused.value.data["earliest"] == tail + 51
            assert refused.value.data["remedy"].endswith(f"after={tail + 50}")
        kept = await store.history.read("exe_a", Cursor(1, tail + 50))
        assert [e.seq for e in kept.events] == list(range(tail + 51, tail + 101))
        # It may have been quick enough to see them live; a gap it must not see.
        seen = tail
        try:
            async with asyncio.timeout(30):
                async for page in late:
                    for event in page.events:
                        assert event.seq == seen + 1
                        seen = event.seq
                    if seen == tail + 100:
                        break
        except Gone as gone:
            assert seen < gone.data["earliest"] - 1

    async def test_all_of_it_trimmed(self, store: Store) -> None:
        await store.running()
        await store.server.ask("XTRIM", store.keys.history("exe_a"), "MAXLEN", 0)
        with pytest.raises(Gone):
            await store.history.read("exe_a", Cursor())
        page = await store.history.read("exe_a", Cursor(1, 4))
        assert (page.events, page.closed) == ((), False)

    async def test_it_begins_again_under_a_follower(self, store: Store) -> None:
        lease = await store.running()
        following = store.history.follow("exe_a", Cursor(1, 4))
        await anext(following)
        nothing = asyncio.ensure_future(anext(following))
        await store.server.ask("HSET", store.keys.record("exe_a"), "generation", 2)
        with pytest.raises(Gone) as refused:
            await asyncio.wait_for(nothing, 60)
        assert "from the start" in refused.value.data["remedy"]
        assert (await store.history.read("exe_a", Cursor(2, 0))).generation == 2
        await store.executions.renew(lease)

    async def test_leaving_ends_the_reader(self, store: Store) -> None:
        await store.running()
        following = store.history.follow("exe_a", Cursor(1, 4))
        await anext(following)
        task = asyncio.ensure_future(anext(following))
        while store.history.readers == 0:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert store.history.readers == 0


class TestPage:
    async def test_next_of_an_empty_page_is_where_it_stands(self, store: Store) -> None:
        await store.running()
        page = await store.history.read("exe_a", Cursor(1, 4))
        assert page.next == Cursor(1, 4)
        assert (await store.history.tail("exe_a")) == Page((), 4, False, 1)
