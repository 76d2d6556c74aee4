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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from orchestrator.errors import TooMany
from orchestrator.events import Event
from orchestrator.history import Page
from orchestrator.wire.event import encode

if TYPE_CHECKING:
    from orchestrator.server.parts import Parts

logger = logging.getLogger(__name__)

#: Encoded pages kept for the next viewer. Live viewers of one history ask for the same pages within milliseconds.
CACHE_BYTES: Final = 16 << 20

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
