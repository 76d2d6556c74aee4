"""What a PUT and a POST to a stream say: headers and a bounded body into nouns, and the answer. Knows no store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

from fastapi import Request, Response

from orchestrator.errors import BadInput, TooLarge
from orchestrator.streams import APPEND_BYTES, DEFAULT_CONTENT_TYPE, JSON, Fork, NewStream, StreamName, Streams
from orchestrator.wire import durable_streams as wire

#: How much of a body that is too large is still read: a client that has not sent all of it would not read the answer.
_DRAINED_BYTES: Final = 4 * APPEND_BYTES


async def new_stream(request: Request, *, source: Callable[[str], StreamName]) -> NewStream:
    """What a PUT asks for. Raises BadInput, TooLarge, and what `source` does."""
    headers = request.headers
    ttl, expires, kind = headers.get(wire.TTL), headers.get(wire.EXPIRES_AT), headers.get("content-type")
    if ttl is not None and expires is not None:
        raise BadInput(
            "a stream has a time to live or an expiry, not both",
            field=wire.EXPIRES_AT,
            limit=f"one of {wire.TTL} and {wire.EXPIRES_AT}",
            remedy="leave one out",
        )
    fork = _fork(request, source)
    content_type = wire.content_type(kind) if kind else None
    body = await _body(request)
    if wire.media_type(content_type or (DEFAULT_CONTENT_TYPE if fork is None else "")) == JSON and body:
        body = wire.flattened(body, may_be_empty=True)
    if body and fork is not None and content_type is None:
        raise BadInput(
            "a fork's first append needs to say what it is",
            field="Content-Type",
            limit="the source's content type",
            remedy="send the header Content-Type",
        )
    return NewStream(
        content_type,
        ttl_s=None if ttl is None else wire.ttl_s(ttl),
        expires_at=None if expires is None else wire.expires_at(expires),
        closed=wire.is_true(headers.get(wire.CLOSED)),
        fork=fork,
        body=body,
    )


async def append(streams: Streams, name: StreamName, request: Request) -> Response:
    """Raises BadInput, TooLarge, and what `Streams.append` does."""
    headers = request.headers
    producer = wire.producer(headers)
    close = wire.is_true(headers.get(wire.CLOSED))
    kind = headers.get("content-type")
    seq = headers.get(wire.STREAM_SEQ)
    body = await _body(request)
    if not body and not close:
        raise BadInput(
            "there is nothing to append",
            field="body",
            limit="at least one byte",
            remedy=f"send data, or {wire.CLOSED}: true to close the stream",
        )
    if body:
        if not kind:
            raise BadInput(
                "a body needs a content type",
                field="Content-Type",
                limit="the stream's content type",
                remedy="send the header Content-Type",
            )
        if wire.media_type(wire.content_type(kind)) == JSON:
            body = wire.flattened(body)
    written = await streams.append(
        name,
        body,
        content_type=kind,
        close=close,
        stream_seq=None if seq is None else wire.stream_seq(seq),
        producer=producer,
    )
    told = {wire.NEXT_OFFSET: str(written.offset)}
    if written.closed:
        told[wire.CLOSED] = "true"
    if producer is not None:
        told[wire.PRODUCER_EPOCH] = str(producer.epoch)
        told[wire.PRODUCER_SEQ] = str(written.producer_seq)
    # Section 5.2.1: 200 tells a producer that this one was new. Closing without data is 204 either way.
    fresh = producer is not None and not written.repeated and bool(body)
    return Response(status_code=200 if fresh else 204, headers=told)


def _fork(request: Request, source: Callable[[str], StreamName]) -> Fork | None:
    headers = request.headers
    path, at, within = (headers.get(name) for name in (wire.FORKED_FROM, wire.FORK_OFFSET, wire.FORK_SUB_OFFSET))
    if path is None:
        if at is not None or within is not None:
            raise BadInput(
                "a fork's offset without a source",
                field=wire.FORKED_FROM,
                limit="the path of a stream's URL",
                remedy=f"send the header {wire.FORKED_FROM} too",
            )
        return None
    return Fork(
        source(unquote(path)),
        wire.fork_offset(at) if at is not None else None,
        wire.sub_offset(within) if within is not None else 0,
    )


async def _body(request: Request) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > _DRAINED_BYTES:
            break
        if size <= APPEND_BYTES:
            pieces.append(piece)
        else:
            pieces.clear()
    if size > APPEND_BYTES:
        raise TooLarge(
            "the append is too large",
            field="body",
            limit=f"{APPEND_BYTES} bytes",
            remedy="send it in several appends",
        )
    return b"".join(pieces)
