"""A GET of a stream: at once, held until something comes, or as server-sent events. Knows no store.

Answers may hold anything a tenant wrote, so no cache may keep them (`private, no-store`) and no browser may guess at
them (`nosniff`, from the door); ETags still save a reader the transfer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Final

from fastapi import Request, Response

from orchestrator.errors import BadInput, CarrelError
from orchestrator.events import Cursor
from orchestrator.server.parts import Parts
from orchestrator.server.sse import Streamed, until_gone
from orchestrator.server.viewers import beating, check_room, counted, cut
from orchestrator.streams import Chunk, StreamName, Streams
from orchestrator.wire import durable_streams as wire

logger = logging.getLogger(__name__)

#: Most data of one answer, and of one server-sent event; whole appends, so a little more.
_READ_BYTES: Final = 1 << 20
_EVENT_BYTES: Final = 256 << 10
_WRITE_BYTES: Final = 64 << 10
#: Section 8.2: a connection lives about a minute, so that readers spread over processes again.
_EVENTS_S: Final = 60.0
_NO_STORE: Final = {"Cache-Control": "private, no-store"}
_NO_CACHE: Final = {"Cache-Control": "private, no-cache, no-store", "X-Accel-Buffering": "no"}


async def read(parts: Parts, streams: Streams, name: StreamName, request: Request) -> Response:
    """Raises BadInput, and what `Streams.read` does."""
    live = _one(request, "live")
    given = _one(request, "offset")
    last = request.headers.get("last-event-id") if live == "sse" else None
    if given is None and last is None and live is not None:
        raise BadInput(
            "following a stream needs an offset",
            field="offset",
            limit="-1, now, or what a Stream-Next-Offset header said",
            remedy="add ?offset=",
        )
    # A browser that comes back by itself asks for the old URL, and says in the header how far it got.
    at = wire.offset(last or ("-1" if given is None else given))
    match live:
        case None:
            return await _at_once(streams, name, at, request)
        case "long-poll":
            return await _held(parts, streams, name, at, request)
        case "sse":
            return await _events(parts, streams, name, at, request, came_back=bool(last))
    raise BadInput("there is no such way to follow", field="live", limit="long-poll or sse", remedy="leave it out")


def without_body(status: int, headers: Mapping[str, str]) -> Response:
    """An answer that has no body and says nothing of its length: to a HEAD, or 304."""
    response = Response(status_code=status, headers={**headers, **_NO_STORE})
    if "content-length" in response.headers:
        del response.headers["content-length"]
    return response


async def _at_once(streams: Streams, name: StreamName, at: Cursor | None, request: Request) -> Response:
    chunk = await streams.read(name, at, max_bytes=_READ_BYTES)
    headers = wire.of_chunk(chunk)
    if at is not None:
        headers["ETag"] = wire.etag(chunk)
        if wire.matches(request.headers.get("if-none-match"), headers["ETag"]):
            return without_body(304, headers)
    return _whole(chunk, headers)


def _whole(chunk: Chunk, headers: Mapping[str, str]) -> Response:
    media = wire.media_type(chunk.stream.content_type)
    return Response(wire.payload(media, chunk.bodies), headers={**headers, **_NO_STORE})


async def _held(parts: Parts, streams: Streams, name: StreamName, at: Cursor | None, request: Request) -> Response:
    """Ends with the first data, the closing, the time, the caller's leaving or the process's end."""
    request.scope["carrel.held"] = True
    polling = asyncio.ensure_future(_first_news(parts, streams, name, at))
    gone = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait((polling, gone), return_when=asyncio.FIRST_COMPLETED)
        if not polling.done():
            return Response(status_code=204)  # to nobody
        chunk = polling.result()
    finally:
        polling.cancel()
        gone.cancel()
        await asyncio.gather(polling, gone, return_exceptions=True)
    headers = wire.of_chunk(chunk)
    if not chunk.closed:
        headers[wire.CURSOR] = _cursor(parts, request)
    if chunk.bodies:
        headers["ETag"] = wire.etag(chunk)
        return _whole(chunk, headers)
    del headers["Content-Type"]
    return without_body(204, headers)


async def _first_news(parts: Parts, streams: Streams, name: StreamName, at: Cursor | None) -> Chunk:
    """The first chunk with data or the closing in it; when nothing came for `long_poll_s`, the empty one of before."""
    chunks = streams.follow(name, at, max_bytes=_READ_BYTES)
    latest: Chunk | None = None
    async with aclosing(beating(chunks, stopping=parts.stopping, beat_s=parts.settings.long_poll_s)) as beats:  # type: ignore[type-var]
        async for chunk in beats:
            if chunk is None:
                break
            latest = chunk
            if chunk.bodies or chunk.closed:
                break
    if latest is None:  # the process ends before anything was read: its caller's place is told all the same
        return await streams.read(name, at, max_bytes=_READ_BYTES)
    return latest


async def _events(
    parts: Parts, streams: Streams, name: StreamName, at: Cursor | None, request: Request, *, came_back: bool
) -> Response:
    """What is wrong is raised before the first byte, so that it is a status and not a broken stream."""
    check_room(parts)
    chunks = streams.follow(name, at, max_bytes=_EVENT_BYTES)
    try:
        first = await anext(chunks)
    except BaseException:
        await chunks.aclose()  # type: ignore[attr-defined]
        raise
    if came_back and first.closed and not first.bodies:
        # The one answer after which an EventSource does not come back (HTML Living Standard, 9.2.3).
        await chunks.aclose()  # type: ignore[attr-defined]
        return without_body(204, {wire.NEXT_OFFSET: str(first.next), wire.CLOSED: "true"})
    headers = {"Content-Type": "text/event-stream", **_NO_CACHE}
    if not wire.sse_is_text(wire.media_type(first.stream.content_type)):
        headers[wire.SSE_ENCODING] = "base64"
    pieces = _pieces(parts, first, chunks, _cursor(parts, request))
    return Streamed(pieces, parts=parts, kind="sse", headers=headers)


async def _pieces(parts: Parts, first: Chunk, chunks: AsyncIterator[Chunk], cursor: str) -> AsyncIterator[bytes]:
    until_s = parts.clock.monotonic() + _EVENTS_S
    with counted(parts, "sse"):
        beats = beating(_after(first, chunks), stopping=parts.stopping, beat_s=parts.settings.heartbeat_s)
        try:
            async for chunk in beats:
                if chunk is None:
                    yield b":\n\n"
                else:
                    for piece in cut([wire.sse(chunk, cursor)], _WRITE_BYTES):
                        yield piece
                if parts.clock.monotonic() > until_s:
                    return
        except CarrelError as error:
            # The connection just ends: its reader comes back with its last offset, and is told why as a status.
            logger.info("a stream's reader was let go", extra={"code": error.code, "why": error.message})
        finally:
            await beats.aclose()  # type: ignore[attr-defined]


async def _after(first: Chunk, chunks: AsyncIterator[Chunk]) -> AsyncIterator[Chunk]:
    try:
        yield first
        async for chunk in chunks:
            yield chunk
    finally:
        await chunks.aclose()  # type: ignore[attr-defined]


def _cursor(parts: Parts, request: Request) -> str:
    # Not a secret: it only has to differ.
    return wire.cursor(_one(request, "cursor"), parts.clock.now(), random.randint(1, wire.CURSOR_JITTER))


def _one(request: Request, name: str) -> str | None:
    """A query parameter that may be given once; an empty one is not left out. Raises BadInput."""
    given = request.query_params.getlist(name)
    if len(given) > 1:
        raise BadInput(f"{name} is given twice", field=name, limit="one", remedy="leave one out")
    return given[0] if given else None
