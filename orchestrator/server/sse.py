"""Server-sent events: how a history is written for an EventSource. Knows no store.

The framework's own SSE writes one event at a time, encodes it for each viewer, and cannot answer 204 or 410 on a route
that also serves JSON; here a page is encoded once for all viewers and written in pieces of 64 KiB.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from orchestrator.errors import CarrelError, Gone, Unavailable
from orchestrator.events import Cursor, Event
from orchestrator.history import Page
from orchestrator.server import problems
from orchestrator.server.auth import Permit
from orchestrator.server.parts import Parts
from orchestrator.server.viewers import Viewer, attend, check_room, counted, cut, taken

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "text/event-stream"
_WRITE_BYTES: Final = 64 << 10
_HEADERS: Final = {"Cache-Control": "private, no-store", "X-Accel-Buffering": "no"}
#: A browser waits so long before it connects again.
_RETRY_MS: Final = 500


def accepts_sse(accept: str) -> bool:
    return any(part.split(";")[0].strip().lower() == MEDIA_TYPE for part in accept.split(","))


def written(event: str, data: bytes, id: str = "") -> bytes:
    """One server-sent event. `data` is one line (JSON has no bare line ends)."""
    head = f"id: {id}\nevent: {event}\n" if id else f"event: {event}\n"
    return head.encode() + b"data: " + data + b"\n\n"


def form(_execution_id: str, generation: int, events: Sequence[Event], encoded: Sequence[bytes]) -> Sequence[bytes]:
    """A page of events as writes."""
    prefix = f"{generation:016d}_"
    return cut(
        [
            b"id: %b%016d\nevent: event\ndata: %b\n\n" % (prefix.encode(), event.seq, line)
            for event, line in zip(events, encoded, strict=True)
        ],
        _WRITE_BYTES,
    )


class Streamed(Response):
    """A response whose pieces come from an iterator; ends when the caller goes, and cuts a caller that takes nothing.
    Raises ViewerStalled out of the app for that: the server then closes the connection. `kind`: for the metrics."""

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        *,
        parts: Parts,
        kind: str,
        media_type: str = MEDIA_TYPE,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status_code=200, headers=dict(headers or _HEADERS), media_type=media_type)
        if "content-length" not in {name.lower() for name in headers or ()}:
            del self.headers["content-length"]
        self._pieces = pieces
        self._parts = parts
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            writing.cancel()
            leaving.cancel()
            await asyncio.gather(writing, leaving, return_exceptions=True)

    async def _write(self, send: Send) -> None:
        parts, kind, pieces = self._parts, self._kind, self._pieces
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in pieces:
                await taken(parts, kind, send(_body(piece)))
            await taken(parts, kind, send(_body(b"", more=False)))
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]


def _body(piece: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": piece, "more_body": more}


async def until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """One viewer of one history over SSE."""

    def __init__(
        self, parts: Parts, execution_id: str, start: Cursor, permit: Permit, first: Page, pages: AsyncIterator[Page]
    ) -> None:
        super().__init__(status_code=200, headers=_HEADERS, media_type=MEDIA_TYPE)
        del self.headers["content-length"]
        self._parts = parts
        self._id = execution_id
        self._start = start
        self._permit = permit
        self._first = first
        self._pages = pages

    @classmethod
    async def begin(cls, parts: Parts, execution_id: str, start: Cursor, permit: Permit) -> Response:
        """The response: a stream, or 204 when everything was seen. What is wrong with `start` is raised here, before
        the stream begins, so that it is a status and not a broken stream."""
        check_room(parts)
        pages = parts.history.follow(execution_id, start)
        try:
            first = await anext(pages)
        except BaseException:
            await pages.aclose()  # type: ignore[attr-defined]
            raise
        if first.closed and not first.events:
            await pages.aclose()  # type: ignore[attr-defined]
            return Response(status_code=204, headers=_HEADERS)
        return cls(parts, execution_id, start, permit, first, pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        viewer = Viewer(self._parts, "sse", self._permit, self._start)
        with counted(self._parts, "sse"):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            why = await attend(
                viewer,
                showing=self._show(viewer, send),
                leaving=until_gone(receive),
                beat=lambda: send(_body(b":\n\n")),
            )
            if why == "left":
                return
            # A stream that ends without `closed` is opened again, here or elsewhere; a revoked token is told 401 then.
            last = b": this server restarts, connect again\n\n" if why == "stopping" else b""
            await taken(self._parts, "sse", send(_body(last, more=False)))

    async def _show(self, viewer: Viewer, send: Send) -> None:
        parts = self._parts
        told = False  # "up to date" is said once, when the viewer first has everything there is
        pages = _after(self._first, self._pages)
        try:
            await viewer.take(send(_body(f"retry: {_RETRY_MS}\n\n".encode())))
            async for page in pages:
                viewer.quiet = False
                if page.events:
                    size = 0
                    for piece in parts.encodings.page(self._id, page, "sse", form):
                        await viewer.take(send(_body(piece)))
                        size += len(piece)
                    viewer.took(page, size)
                if page.closed:
                    await viewer.take(send(_body(_place("closed", viewer.cursor))))
                    return
                if not told and viewer.cursor.seq >= page.tail:
                    told = True
                    await viewer.take(send(_body(_place("up_to_date", viewer.cursor))))
                viewer.quiet = True
        except Gone as gone:
            await viewer.take(send(_body(written("gap", _json(problems.members_of(gone))))))
        except Unavailable as away:
            # The stream just ends: its reader connects again with its last id, and is told 503 or goes on.
            logger.warning("a stream ended early", extra={"execution": self._id, "why": away.message})
        except CarrelError as error:
            await viewer.take(send(_body(written("error", _json(problems.members_of(error))))))
        finally:
            await pages.aclose()  # type: ignore[attr-defined]


async def _after(first: Page, pages: AsyncIterator[Page]) -> AsyncIterator[Page]:
    try:
        yield first
        async for page in pages:
            yield page
    finally:
        await pages.aclose()  # type: ignore[attr-defined]


def _place(event: str, cursor: Cursor) -> bytes:
    return written(event, json.dumps({"cursor": str(cursor)}).encode(), str(cursor))


def _json(members: Mapping[str, Any]) -> bytes:
    return json.dumps(members, default=str).encode()


__all__ = ["MEDIA_TYPE", "EventStream", "Streamed", "accepts_sse", "until_gone", "written"]
