"""The generic streams at /v1/stream: the Durable Streams protocol's verbs, and its own way to refuse. Knows no store.

Reading is in `streams_read`, writing in `streams_write`; what headers mean is in `wire.durable_streams`. Names are the
caller's tenant's. Answers are problems as everywhere, with the statuses and headers that the protocol wants.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from orchestrator import errors
from orchestrator.errors import CarrelError, NotFound
from orchestrator.events import Cursor
from orchestrator.server import problems, streams_read, streams_write
from orchestrator.server.parts import Parts, Reader, ThePart, Writer
from orchestrator.streams import NewStream, StreamName, Streams
from orchestrator.tokens import Token
from orchestrator.wire import durable_streams as wire

PREFIX: Final = "/v1/stream"
#: Where the protocol's status is not ours. By class; a class that is not here has its parent's, or that of `problems`.
_STATUS: Final[dict[type[CarrelError], int | None]] = {
    errors.TooLarge: None,
    errors.BadInput: 400,
    errors.Fenced: 403,
}
_METHODS: Final = "GET, HEAD, PUT, POST, DELETE, OPTIONS"


class _Route(APIRoute):
    """Says no the protocol's way."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Any]]:  # type: ignore[override]
        handler = super().get_route_handler()

        async def handled(request: Request) -> Any:
            try:
                return await handler(request)
            except CarrelError as error:
                return _refused(error, request)

        return handled


router = APIRouter(prefix=PREFIX, tags=["streams"], route_class=_Route)


@router.put("/{name:path}", status_code=201, response_class=Response, summary="Create a stream")
async def create(name: str, request: Request, parts: ThePart, caller: Writer) -> Response:
    """Or find it, made the same way (200). The body is its first append. Headers: Content-Type, Stream-TTL or
    Stream-Expires-At, Stream-Closed; Stream-Forked-From, Stream-Fork-Offset, Stream-Fork-Sub-Offset."""
    wanted = await streams_write.new_stream(request, source=lambda path: _source(path, caller))
    return await _made(parts, StreamName(caller.tenant, name), wanted, request)


@router.post("/{name:path}", status_code=204, response_class=Response, summary="Append to a stream")
async def append(name: str, request: Request, parts: ThePart, caller: Writer) -> Response:
    """And close it, with Stream-Closed. Headers: Content-Type, Stream-Seq; Producer-Id, Producer-Epoch, Producer-Seq
    make it safe to repeat."""
    return await streams_write.append(_streams(parts), StreamName(caller.tenant, name), request)


@router.get("/{name:path}", response_class=Response, summary="Read a stream")
async def read(name: str, request: Request, parts: ThePart, caller: Reader) -> Response:
    """From `offset` (-1, now, or what Stream-Next-Offset said); `live=long-poll` waits for what comes next, `live=sse`
    goes on as server-sent events."""
    return await streams_read.read(parts, _streams(parts), StreamName(caller.tenant, name), request)


@router.head("/{name:path}", response_class=Response, summary="How a stream stands")
async def look(name: str, parts: ThePart, caller: Reader) -> Response:
    """Its tail, content type, time to live, closed or not; does not renew the time to live."""
    stream = await _streams(parts).look(StreamName(caller.tenant, name))
    return streams_read.without_body(200, wire.of_stream(stream))


@router.delete("/{name:path}", status_code=204, response_class=Response, summary="Remove a stream")
async def remove(name: str, parts: ThePart, caller: Writer) -> Response:
    """At once; or, while forks need it, from sight (410) until the last of them is removed."""
    await _streams(parts).delete(StreamName(caller.tenant, name))
    return Response(status_code=204)


@router.options("/{name:path}", status_code=204, response_class=Response, include_in_schema=False)
async def options(name: str, _caller: Reader) -> Response:
    """What a page of an allowed origin may send. Which origins those are is the door's to say."""
    headers = {
        "Allow": _METHODS,
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": ", ".join(("Authorization", "If-None-Match", "Last-Event-ID", *wire.SENT)),
        "Access-Control-Expose-Headers": ", ".join(("ETag", "Location", *wire.ANSWERED)),
    }
    return Response(status_code=204, headers=headers)


async def _made(parts: Parts, name: StreamName, wanted: NewStream, request: Request) -> Response:
    stream, new = await _streams(parts).create(name, wanted)
    headers = wire.of_stream(stream)
    if new:
        headers["Location"] = str(request.url.replace(query=""))
    return Response(status_code=201 if new else 200, headers=headers)


def _streams(parts: Parts) -> Streams:
    if parts.streams is None:
        raise NotFound("this server keeps no streams", kind="page", id=PREFIX)
    return parts.streams


def _source(path: str, caller: Token) -> StreamName:
    """The stream that a Stream-Forked-From header names by its URL's path."""
    if not path.startswith(PREFIX + "/"):
        raise NotFound(f"there is no stream {path[:200]} to fork from", kind="stream", id=path[:200])
    return StreamName(caller.tenant, path.removeprefix(PREFIX + "/"))


def _refused(error: CarrelError, request: Request) -> Response:
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), None)
    response = problems.answer(error, status=status)
    headers = {"Cache-Control": "private, no-store"}
    if isinstance(error, errors.Closed):
        headers |= {wire.CLOSED: "true", wire.NEXT_OFFSET: str(error.data.get("tail", Cursor(0, 0)))}
    elif isinstance(error, errors.Fenced):
        headers[wire.PRODUCER_EPOCH] = str(error.data["epoch"])
    elif isinstance(error, errors.Resend):
        headers[wire.PRODUCER_EXPECTED] = str(error.src)
        headers[wire.PRODUCER_RECEIVED] = request.headers.get(wire.PRODUCER_SEQ, "")
    elif isinstance(error, errors.TooLarge):
        headers["Connection"] = "close"  # a body that was not read to its end may still be on its way
    response.headers.update(headers)
    return response
