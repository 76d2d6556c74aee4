"""Live following of generic streams: one blocking XREAD per followed stream per process. Knows no name and no HTTP.

As `hub` does for histories: the reader keeps what came last in a ring of bounded size and wakes the followers; who lags
reads from the store by himself. Here entries are bytes that nobody has to decode, and a stream may be removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from orchestrator.errors import CarrelError, NotFound, StoreUnavailable, TooMany
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.tail import tail

logger = logging.getLogger(__name__)

#: Streams followed at once by one process: each holds one connection to the store.
MOST_WATCHED: Final = 1000
_RING_BYTES: Final = 1 << 20
_REPLY_BYTES: Final = 1 << 20
_FIRST_COUNT: Final = 16
_MOST_COUNT: Final = 1024

#: Answers which generation the name means now; raises what a reader should hear.
Look = Callable[[], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Fresh:
    """What came after a seq: up to and including `seq`. `up_to_date`: nothing more has been seen; `closed`: nor will
    be."""

    bodies: tuple[bytes, ...]
    seq: int
    up_to_date: bool
    closed: bool


class StreamHub:
    """The streams somebody follows in this process. `prefix`: of their keys."""

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        self._watches: dict[int, Watch] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def readers(self) -> int:
        """How many streams are read now."""
        return len(self._watches)

    async def aclose(self) -> None:
        """End all readers; followers get StoreUnavailable."""
        self._closed = True
        for watch in list(self._watches.values()):
            watch.fail(StoreUnavailable("this process is shutting down"))
            self._end(watch)
        await asyncio.gather(*self._ending, return_exceptions=True)

    def join(self, generation: int, seq: int, look: Look) -> Watch:
        """The watch of a stream, read from `seq` on if nobody watches it yet. `leave` it in the end. Raises TooMany,
        StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable("this process is shutting down")
        watch = self._watches.get(generation)
        if watch is None or watch.failure is not None:
            if len(self._watches) >= MOST_WATCHED:
                raise TooMany("too many streams are followed here at once", limit=MOST_WATCHED, retry_after_s=1.0)
            watch = Watch(self._server, f"{self._prefix}{generation}:entries", generation, seq, look)
            self._watches[generation] = watch
        watch.followers += 1
        return watch

    def leave(self, watch: Watch) -> None:
        """The last one ends the reader."""
        watch.followers -= 1
        if watch.followers == 0:
            self._end(watch)

    def _end(self, watch: Watch) -> None:
        if self._watches.get(watch.generation) is watch:
            del self._watches[watch.generation]
        if not watch.reader.done():
            watch.reader.cancel()
            self._ending.add(watch.reader)
            watch.reader.add_done_callback(self._ending.discard)


class Watch:
    """One stream being read: what came last, and who has to be woken."""

    def __init__(self, server: Server, key: str, generation: int, position: int, look: Look) -> None:
        self.generation = generation
        self.failure: CarrelError | None = None
        self.followers = 0
        self._server = server
        self._key = key
        self._position = position  # seq of the last entry seen
        self._closed = False
        self._look = look
        self._moved = asyncio.Event()  # set, and replaced by a new one, at every change
        self._ring: deque[bytes] = deque()
        self._ring_bytes = 0
        self._count = _FIRST_COUNT  # of entries to ask for next
        self.reader = asyncio.create_task(self._pump(), name=f"streams {key}")

    async def after(self, seq: int, max_bytes: int) -> Fresh | None:
        """What came after `seq`, as soon as there is something; at least one entry, else about `max_bytes`. None: the
        ring does not reach back to it. Raises the reader's failure."""
        while self._position <= seq and not self._closed:
            if self.failure is not None:
                raise self.failure
            await self._moved.wait()
        if self._position <= seq:
            return Fresh((), seq, True, True)
        first = self._position - len(self._ring) + 1
        if seq + 1 < first:
            return None
        taken: list[bytes] = []
        size = 0
        for index in range(seq + 1 - first, len(self._ring)):
            body = self._ring[index]
            if taken and size + len(body) > max_bytes:
                break
            taken.append(body)
            size += len(body)
        upto = seq + len(taken)
        at_end = upto == self._position
        return Fresh(tuple(taken), upto, at_end, at_end and self._closed)

    def fail(self, failure: CarrelError) -> None:
        """No more will come; say why."""
        self.failure = failure
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _pump(self) -> None:
        try:
            await self._read_on()
        except CarrelError as failure:
            self.fail(failure)
        except Exception as failure:  # followers must hear of a bug here, not wait for ever
            logger.exception("the reader of a stream failed", extra={"key": self._key})
            self.fail(StoreUnavailable(f"reading a stream failed: {failure!r}"))

    async def _read_on(self) -> None:
        async for rows in tail(self._server, self._key, lambda: (self._position, self._count)):
            if rows:
                self._count = self._keep(rows)
            elif await self._look() != self.generation:
                # Expired without a word, or removed while the line was down longer than its marker lives.
                raise NotFound("the stream was removed", kind="stream")
            if self._closed:
                return

    def _keep(self, rows: list[tuple[bytes, list[bytes]]]) -> int:
        """Take them in; how many to ask for next."""
        size = came = 0
        for name, fields in rows:
            seq, _, part = name.partition(b"-")
            if part == b"2":
                raise NotFound("the stream was removed", kind="stream")
            if part == b"1":
                self._closed = True
                break
            self._ring.append(fields[1])
            self._position = int(seq)
            came += 1
            size += len(fields[1])
        self._ring_bytes += size
        while self._ring_bytes > _RING_BYTES and len(self._ring) > 1:
            self._ring_bytes -= len(self._ring.popleft())
        self._wake()
        return max(1, min(_MOST_COUNT, _REPLY_BYTES * came // max(size, 1))) if came else _FIRST_COUNT
