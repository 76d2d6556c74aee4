"""What everyone who watches a history shares: encoded pages, the beat of a quiet line, the end of a stalled one. Knows
neither SSE nor WebSocket.

A viewer holds a cursor, one page and one write; nothing is queued for it. A write that the viewer does not take within
the stall limit ends it: what it has it can go on from.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from orchestrator.errors import TooMany
from orchestrator.events import Cursor, Event
from orchestrator.history import Page
from orchestrator.wire.event import encode

if TYPE_CHECKING:
    from orchestrator.server.auth import Permit
    from orchestrator.server.parts import Parts

logger = logging.getLogger(__name__)

#: Encoded pages kept for the next viewer. Live viewers of one history ask for the same pages within milliseconds.
CACHE_BYTES: Final = 16 << 20

#: How often one looks whether a viewer that is to be let go has been told the page under way.
_SOON_S: Final = 0.01

T = TypeVar("T")
Kind = Literal["sse", "websocket"]
Form = Callable[[str, int, Sequence[Event], Sequence[bytes]], Sequence[bytes]]


class ViewerStalled(Exception):
    """This viewer took nothing for too long. Ends its connection; the work and the other viewers did not notice."""


class Encodings:
    """Pages in the form they are sent in, by execution, generation and the numbers in them: that never changes, so
    whoever asks second gets the first one's bytes."""

    def __init__(self, limit_bytes: int = CACHE_BYTES) -> None:
        self._kept: OrderedDict[tuple[object, ...], tuple[Sequence[bytes], int]] = OrderedDict()
        self._size_bytes = 0
        self._limit_bytes = limit_bytes
        self.encoded = 0  # events turned into JSON, for the metrics

    def page(self, execution_id: str, page: Page, kind: Kind, form: Form) -> Sequence[bytes]:
        """The page's events as pieces to send."""
        key = (execution_id, page.generation, page.events[0].seq, page.events[-1].seq, kind)
        found = self._kept.get(key)
        if found is not None:
            return found[0]
        pieces = form(execution_id, page.generation, page.events, [encode(event) for event in page.events])
        size = sum(len(piece) for piece in pieces)
        self.encoded += len(page.events)
        self._kept[key] = (pieces, size)
        self._size_bytes += size
        while self._size_bytes > self._limit_bytes:
            _, (_, gone) = self._kept.popitem(last=False)
            self._size_bytes -= gone
        return pieces


def check_room(parts: Parts) -> None:
    """Before an answer begins. Raises TooMany when this process has all the viewers it wants."""
    if parts.viewers >= parts.settings.viewer_limit:
        raise TooMany(
            f"this process has {parts.viewers} viewers",
            limit=f"{parts.settings.viewer_limit} viewers",
            retry_after_s=5,
        )


@contextlib.contextmanager
def counted(parts: Parts, kind: Kind) -> Iterator[None]:
    """One viewer more, for as long as it lasts."""
    parts.viewers += 1
    parts.alone.clear()
    gauge = parts.metrics.viewers.labels(kind)
    gauge.inc()
    try:
        yield
    finally:
        parts.viewers -= 1
        if not parts.viewers:
            parts.alone.set()
        gauge.dec()


class Viewer:
    """One viewer as it is seen from beside: how far it has come, whether a write to it is under way and since when."""

    def __init__(self, parts: Parts, kind: Kind, permit: Permit, cursor: Cursor) -> None:
        self.parts = parts
        self.kind = kind
        self.permit = permit
        self.cursor = cursor
        self.quiet = False  # it has all there is and waits: nothing is half said
        self.writing_since: float | None = None
        self.took_at = 0.0
        self._time = asyncio.get_running_loop().time
        self._sent = parts.metrics.events_sent.labels(kind)
        self._sent_bytes = parts.metrics.sent_bytes.labels(kind)

    async def take(self, sending: Awaitable[None]) -> None:
        """One write. It may wait for ever; whoever attends sees that."""
        self.writing_since = self._time()
        await sending
        self.took_at = self._time()
        self.writing_since = None

    def took(self, page: Page, size_bytes: int) -> None:
        """It has this page now."""
        self.cursor = page.next
        self._sent.inc(len(page.events))
        self._sent_bytes.inc(size_bytes)

    def stalled(self) -> bool:
        since = self.writing_since
        return since is not None and self._time() - since > self.parts.settings.stall_limit_s

    def wants_beat(self) -> bool:
        return (
            self.quiet and self.writing_since is None and self._time() - self.took_at >= self.parts.settings.heartbeat_s
        )


Why = Literal["shown", "left", "stopping", "revoked"]


async def attend(
    viewer: Viewer,
    *,
    showing: Coroutine[None, None, None],
    leaving: Coroutine[None, None, None],
    beat: Callable[[], Awaitable[None]] | None = None,
) -> Why:
    """Run `showing` until it has said everything, the viewer leaves, its token does not hold any more or this process
    stops; say which. In the last two cases what was under way has been said whole. Raises ViewerStalled, and what
    `showing` or `leaving` raise.

    One timer beside each viewer, and nothing but the write itself per event: a timeout around every write and a race
    around every page made 300 viewers cost twice as much.
    """
    parts = viewer.parts
    shown, left = asyncio.ensure_future(showing), asyncio.ensure_future(leaving)
    stop = asyncio.ensure_future(parts.stopping.wait())
    tick_s = min(parts.settings.heartbeat_s, parts.settings.stall_limit_s / 4)
    why: Why | None = None
    try:
        while True:
            waiting = (shown, left) if why else (shown, left, stop)
            await asyncio.wait(waiting, timeout=_SOON_S if why else tick_s, return_when=asyncio.FIRST_COMPLETED)
            if shown.done():
                shown.result()
                return why or "shown"
            if left.done():
                left.result()
                return "left"
            if viewer.stalled():
                parts.metrics.viewers_dropped.labels(viewer.kind).inc()
                logger.info("a viewer took nothing for too long and was cut", extra={"kind": viewer.kind})
                raise ViewerStalled
            if why is None:
                why = "stopping" if stop.done() else None if await viewer.permit.holds() else "revoked"
            if why is not None and viewer.quiet:
                return why
            if beat is not None and viewer.wants_beat():
                await taken(parts, viewer.kind, beat())
    finally:
        for task in (shown, left, stop):
            task.cancel()
        await asyncio.gather(shown, left, stop, return_exceptions=True)


async def beating(pages: AsyncIterator[T], *, stopping: asyncio.Event, beat_s: float) -> AsyncIterator[T | None]:
    """The pages as they come; None whenever nothing came for `beat_s`. Ends with them, or soon after `stopping`."""
    stop = asyncio.ensure_future(stopping.wait())
    coming: asyncio.Future[T] | None = None
    try:
        while not stopping.is_set():
            if coming is None:
                coming = asyncio.ensure_future(anext(pages))
            done, _ = await asyncio.wait((coming, stop), timeout=beat_s, return_when=asyncio.FIRST_COMPLETED)
            if coming in done:
                try:
                    page = coming.result()
                except StopAsyncIteration:
                    return
                finally:
                    coming = None
                yield page
            elif not done:
                yield None
    finally:
        stop.cancel()
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        close = getattr(pages, "aclose", None)
        if close is not None:
            await close()


async def taken(parts: Parts, kind: str, sending: Awaitable[None]) -> None:
    """Raises ViewerStalled when the other side does not take it within the stall limit."""
    try:
        async with asyncio.timeout(parts.settings.stall_limit_s):
            await sending
    except TimeoutError:
        parts.metrics.viewers_dropped.labels(kind).inc()
        logger.info("a reader took nothing for too long and was cut", extra={"kind": kind})
        raise ViewerStalled from None


def cut(pieces: Sequence[bytes], size_bytes: int) -> list[bytes]:
    """Joined, then cut into writes of at most so many bytes: progress of a slow reader is seen write by write."""
    whole = b"".join(pieces)
    if len(whole) <= size_bytes:
        return [whole]
    return [whole[at : at + size_bytes] for at in range(0, len(whole), size_bytes)]
