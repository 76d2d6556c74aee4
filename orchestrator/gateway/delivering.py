"""An answer on its way to one client, in the way this client asked for it. Knows no provider and no store.

As it flows, where it flows as wanted. Otherwise when it is whole: a stream put together as JSON, JSON taken apart as a
stream. An answer that breaks off after its first byte is broken off here as well.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, Final

from orchestrator.calls import Answer
from orchestrator.gateway.asking import ModelRequest
from orchestrator.gateway.exchange import Exchange
from orchestrator.gateway.first import first
from orchestrator.gateway.flight import BrokenOff, Failed, Flight, Flowing, Whole, Withdrawn
from orchestrator.gateway.format_port import Seen, dump, load
from orchestrator.gateway.formats import FORMATS
from orchestrator.gateway.refusals import Refused
from orchestrator.gateway.sse import EVENT_STREAM, joined, split
from orchestrator.models import ModelApi

CALL: Final = "x-carrel-call"  # its name in the record
REPLAYED: Final = "x-carrel-replayed"
_LONG_BYTES: Final = 256 << 10  # what is as long is turned in a thread
_NULL: Final = re.compile(rb',\s*"usage":\s*null')  # in every chunk but one, where chat's usage is asked for
_PIECE_BYTES: Final = 64 << 10


async def deliver(exchange: Exchange, flight: Flight, seat: object, request: ModelRequest) -> bool:
    """Whether the client has a whole answer. Raises Refused where there is none and nothing was said, ConnectionError
    when the client went."""
    if not await _before(flight.opened, exchange.watch()):
        return False
    match flight.opened.result():
        case Refused() as refused:
            raise refused
        case Withdrawn():
            return False
        case Failed(status, headers, body):
            await exchange.answer(status, [*headers.items(), (CALL, flight.call)], body)
            return False
        case Whole(answer, replayed):
            await _whole(exchange, answer, request, flight.call, replayed=replayed)
        case Flowing(status, headers, streamed):
            if streamed == request.stream and not exchange.old:
                told = _flowing(headers, flight.call) if streamed else {**headers, CALL: flight.call}
                exchange.begin(status, told.items())
                if not await _flow(exchange, flight, seat, request):
                    return False
            else:
                return await _when_whole(exchange, flight, seat, request)
    return await exchange.landed()


async def _flow(exchange: Exchange, flight: Flight, seat: object, request: ModelRequest) -> bool:
    try:
        async for pieces in flight.pieces(seat):
            data = b"".join([piece.data for piece in pieces if request.wants_usage or not piece.spare])
            if data:
                await exchange.send(_without_null(data) if _adds_usage(request) else data)
    except BrokenOff:
        exchange.break_off()
        return False
    await exchange.end()
    return True


async def _when_whole(exchange: Exchange, flight: Flight, seat: object, request: ModelRequest) -> bool:
    ended = asyncio.ensure_future(_exhausted(flight, seat))
    try:
        if not await _before(ended, exchange.watch()):
            return False
        if broken := ended.result():
            raise Refused(502, "provider_broke_off", broken)
    finally:
        ended.cancel()
    if flight.answer is None:
        raise Refused(
            502,
            "too_long",
            "the answer is too long to be turned from a stream into JSON or back; ask with the same stream as before",
        )
    await _whole(exchange, flight.answer, request, flight.call, replayed=False)
    return await exchange.landed()


async def _exhausted(flight: Flight, seat: object) -> str:
    """Why it broke; "" = it did not. Reads along, so as to hold nobody up."""
    try:
        async for _ in flight.pieces(seat):
            pass
    except BrokenOff as broken:
        return broken.why
    return ""


async def _whole(exchange: Exchange, answer: Answer, request: ModelRequest, call: str, *, replayed: bool) -> None:
    if len(answer.body) > _LONG_BYTES:
        body = await asyncio.to_thread(turned, answer, request)
    else:
        body = turned(answer, request)
    headers = {**answer.headers, "content-type": "application/json", CALL: call}
    if replayed:
        headers[REPLAYED] = "1"
    if not request.stream or exchange.old:
        if request.stream:
            headers["content-type"] = EVENT_STREAM
        await exchange.answer(answer.status, headers.items(), body)
        return
    exchange.begin(answer.status, _flowing(headers, call).items())
    for begin in range(0, len(body), _PIECE_BYTES):
        await exchange.send(body[begin : begin + _PIECE_BYTES])
    await exchange.end()


def turned(answer: Answer, request: ModelRequest) -> bytes:
    """The answer's body as this request wants it. Raises Refused."""
    form = FORMATS[request.api]
    try:
        if not request.stream:
            return dump(form.assembled(split(answer.body))) if answer.streamed else answer.body
        body = answer.body if answer.streamed else b"".join(form.streamed(load(answer.body)))
    except ValueError as error:
        raise Refused(502, "unreadable", f"the recorded answer cannot be turned: {error}") from error
    if _adds_usage(request):
        reading = form.reading()
        return _without_null(joined(event for event in split(body) if reading.see(event) is not Seen.SPARE))
    return body


def _adds_usage(request: ModelRequest) -> bool:
    """The gateway asked for chat's usage, not the client."""
    return request.api is ModelApi.CHAT and not request.wants_usage


def _without_null(data: bytes) -> bytes:
    # Within a string of JSON the quotes would be escaped: these bytes are a member.
    return _NULL.sub(b"", data) if b'"usage"' in data else data


def _flowing(headers: Mapping[str, str], call: str) -> dict[str, str]:
    streamed = {**headers, CALL: call}
    streamed.setdefault("cache-control", "no-cache")
    if "json" in streamed.get("content-type", "json"):
        streamed["content-type"] = f"{EVENT_STREAM}; charset=utf-8"
    return streamed


async def _before(future: asyncio.Future[Any], gone: asyncio.Future[bool]) -> bool:
    """True when `future` was done first."""
    await first(future, gone)
    return future.done()
