"""Live following: one blocking XREAD per followed history per process, whatever the number of followers. Knows no
record and no HTTP.

A channel's reader decodes each entry once into a ring of bounded size, and wakes the followers. A follower holds only
its cursor: one that keeps up takes its pages from the ring, one that lags reads them from the store by itself until it
has caught up. So nobody's slowness costs memory, or anybody else's time. Measured at 300 viewers, this is 2.8 ms where
a reader each was 18 ms and falling behind (design: channel.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final, Protocol

from orchestrator.errors import CarrelError, Gone, NotFound, StoreUnavailable
from orchestrator.events import Cursor, Event
from orchestrator.history import Page
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.entries import size_of, split
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.tail import tail

logger = logging.getLogger(__name__)

_RING_BYTES: Final = 2 << 20
_REPLY_BYTES: Final = 1 << 20
_FIRST_COUNT: Final = 128
_MOST_COUNT: Final = 2048


class Read(Protocol):
    """`History.read`."""

    async def __call__(self, execution_id: str, after: Cursor, *, limit: int = ..., max_bytes: int = ...) -> Page: ...


class Hub:
    """The channels somebody follows in this process."""

    def __init__(self, server: Server, keys: Keys, read: Read) -> None:
        self._server = server
        self._keys = keys
        self._read = read
        self._channels: dict[str, _Channel] = {}
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def readers(self) -> int:
        """How many streams are read now."""
        return len(self._channels)

    async def aclose(self) -> None:
        """End all readers; followers get StoreUnavailable."""
        for channel in list(self._channels.values()):
            channel.fail(StoreUnavailable("this process is shutting down"))
            self._end(channel)
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def follow(self, execution_id: str, after: Cursor, *, max_bytes: int) -> AsyncIterator[Page]:
        """See `History.follow`."""
        page = await self._read(execution_id, after, max_bytes=max_bytes)
        yield page
        cursor = page.next if page.events else after
        if page.closed:
            return
        channel = self._join(execution_id, page)
        try:
            while True:
                if cursor.seq < channel.position:
                    page = channel.page(cursor, max_bytes) or await self._read(
                        execution_id, cursor, max_bytes=max_bytes
                    )
                    if page.events or page.closed:
                        yield page
                        if page.closed:
                            return
                        cursor = page.next
                elif channel.closed:
                    yield Page((), channel.position, True, cursor.generation)
                    return
                elif channel.failure is not None:
                    raise channel.failure
                else:
                    await channel.moved.wait()
        finally:
            channel.followers -= 1
            if channel.followers == 0:
                self._end(channel)

    def _join(self, execution_id: str, page: Page) -> _Channel:
        channel = self._channels.get(execution_id)
        if channel is None or channel.failure is not None or channel.generation != page.generation:
            channel = _Channel(self._server, self._keys, execution_id, page.generation, page.tail)
            self._channels[execution_id] = channel
        channel.followers += 1
        return channel

    def _end(self, channel: _Channel) -> None:
        if self._channels.get(channel.execution_id) is channel:
            del self._channels[channel.execution_id]
        if not channel.reader.done():
            channel.reader.cancel()
            self._ending.add(channel.reader)
            channel.reader.add_done_callback(self._ending.discard)


class _Channel:
    """One history being read: the ring of what came last, and who has to be woken."""

    def __init__(self, server: Server, keys: Keys, execution_id: str, generation: int, position: int) -> None:
        self.execution_id = execution_id
        self.generation = generation
        self.position = position  # seq of the last event read
        self.closed = False  # the end marker was seen: nothing comes after `position`
        self.failure: CarrelError | None = None
        self.moved = asyncio.Event()  # set, and replaced by a new one, at every change
        self.followers = 0
        self._server = server
        self._keys = keys
        self._ring: list[Event] = []
        self._sizes: list[int] = []
        self._ring_bytes = 0
        self._count = _FIRST_COUNT  # of entries to ask for next
        self._pages: dict[tuple[int, int], Page] = {}
        self.reader = asyncio.create_task(self._pump(), name=f"hub {execution_id}")

    def page(self, cursor: Cursor, max_bytes: int) -> Page | None:
        """The ring's events after `cursor`, or None where it does not reach back so far. Followers at the same place
        share one page."""
        known = self._pages.get((cursor.seq, max_bytes))
        if known is not None:
            return known
        if not self._ring or cursor.seq + 1 < self._ring[0].seq:
            return None
        start = upto = cursor.seq + 1 - self._ring[0].seq
        room = max_bytes
        while upto < len(self._ring) and (upto == start or self._sizes[upto] <= room):
            room -= self._sizes[upto]
            upto += 1
        last = upto == len(self._ring)
        page = Page(tuple(self._ring[start:upto]), self.position, self.closed and last, self.generation)
        self._pages[cursor.seq, max_bytes] = page
        return page

    def fail(self, failure: CarrelError) -> None:
        """No more will come; say why."""
        self.failure = failure
        self._wake()

    def _wake(self) -> None:
        self._pages.clear()
        self.moved.set()
        self.moved = asyncio.Event()

    async def _pump(self) -> None:
        try:
            await self._read_on()
        except CarrelError as failure:
            self.fail(failure)
        except Exception as failure:  # followers must hear of a bug here, not wait for ever
            logger.exception("the reader of a history failed", extra={"execution": self.execution_id})
            self.fail(StoreUnavailable(f"reading {self.execution_id} failed: {failure!r}"))

    async def _read_on(self) -> None:
        history = self._keys.history(self.execution_id)
        async for rows in tail(self._server, history, lambda: (self.position, self._count)):
            if rows:
                events, self.closed = split(rows)
                self._keep(events)
                if events:
                    mean = sum(self._sizes[-len(events) :]) // len(events) + 1
                    self._count = max(8, min(_MOST_COUNT, _REPLY_BYTES // mean))
                self._wake()
            else:
                await self._look()
            if self.closed:
                return

    async def _look(self) -> None:
        """After a quiet while: was it removed, did it begin again, was it trimmed under our feet?"""
        state, tail, generation = await self._server.ask(
            "HMGET", self._keys.record(self.execution_id), "state", "tail", "generation"
        )
        if state is None:
            raise NotFound(f"{self.execution_id} was removed", kind="execution", id=self.execution_id)
        if int(generation or 1) != self.generation:
            raise Gone(
                f"the history of {self.execution_id} began again",
                earliest=1,
                generation=int(generation),
                remedy="start again from the start",
            )
        if state == b"FINISHED" and int(tail) == self.position:
            # The end marker is gone with a trimmed stream; the record says the same.
            self.closed = True
            self._wake()
        elif state == b"FINISHED":
            raise StoreUnavailable(f"the history of {self.execution_id} went into the archive meanwhile: follow again")

    def _keep(self, events: list[Event]) -> None:
        if not events:
            return
        if events[0].seq != self.position + 1:
            # Trimmed meanwhile, and XREAD skips that silently. Who stands before it reads by himself, and is told.
            self._ring, self._sizes, self._ring_bytes = [], [], 0
        sizes = [size_of(event) for event in events]
        self._ring += events
        self._sizes += sizes
        self._ring_bytes += sum(sizes)
        self.position = events[-1].seq
        drop = 0
        while self._ring_bytes > _RING_BYTES and drop < len(self._ring) - 1:
            self._ring_bytes -= self._sizes[drop]
            drop += 1
        if drop:
            del self._ring[:drop], self._sizes[:drop]
