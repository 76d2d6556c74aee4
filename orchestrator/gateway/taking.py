"""A provider's answer taken in: passed on event by event as it comes, its end held back until it is recorded. Knows no
connection.

Whole events are passed on, because no client can use half of one, and because half a mark at the end would already
look like the end to some. What has no mark at its end is no answer.
"""

from __future__ import annotations

import asyncio
from typing import Final

from orchestrator.calls import RECORD_BYTES, Answer, ModelUsage
from orchestrator.gateway.asking import ModelRequest
from orchestrator.gateway.estimates import tokens_of
from orchestrator.gateway.flight import Failed, Flight, Flowing, Piece, Whole
from orchestrator.gateway.format_port import Format, Seen, StreamReading, dump, load
from orchestrator.gateway.formats import FORMATS
from orchestrator.gateway.headers import KeyKeeper, told_again
from orchestrator.gateway.settling import Settle
from orchestrator.gateway.sse import EVENT_STREAM, Splitter, SseEvent, TooLong, split
from orchestrator.gateway.upstream import Answered, Broken
from orchestrator.models import Provider

#: Of a stream, kept to be recorded as JSON where it is too long as it is: its words are a tenth of its bytes.
STREAM_BYTES: Final = 4 * RECORD_BYTES
_DRAIN_S: Final = 1.0  # after the mark, for the connection to be of use again
_LONG_BYTES: Final = 256 << 10  # what is as long is turned in a thread


async def take(answered: Answered, flight: Flight, request: ModelRequest, provider: Provider, settle: Settle) -> None:
    """Raises Broken; StoreUnavailable, Fenced (it could not be recorded, and its end was not passed on)."""
    keeper = KeyKeeper(provider)
    facts = {"retries": answered.retries} if answered.retries else {}
    if not answered.ok:
        body = b"".join([chunk async for chunk in answered.chunks])
        await settle.finish(None, ModelUsage(), {**facts, "status": answered.status})
        flight.open(Failed(answered.status, answered.headers, body))
        flight.land(None)
    elif answered.headers.get("content-type", "").startswith(EVENT_STREAM):
        await _stream(answered, flight, request, keeper, settle, facts)
    else:
        await _body(answered, flight, request, keeper, settle, facts)


async def _stream(
    answered: Answered,
    flight: Flight,
    request: ModelRequest,
    keeper: KeyKeeper,
    settle: Settle,
    facts: dict[str, int],
) -> None:
    form = FORMATS[request.api]
    reading = form.reading()
    splitter = Splitter(RECORD_BYTES)
    kept: list[bytes] = []
    kept_bytes = 0
    flowing = Flowing(answered.status, answered.headers, streamed=True)
    async for chunk in answered.chunks:
        events = _events(splitter, chunk)
        last: SseEvent | None = None
        ready: list[tuple[list[bytes], bool]] = []
        for event in events:
            seen = reading.see(event)
            if seen is Seen.ERROR and not flight.opened.done() and not ready and (status := form.status(event)):
                # Nothing was passed on: the client gets the status that this error has, and may ask again by it.
                await settle.finish(None, ModelUsage(), {**facts, "status": status})
                flight.open(Failed(status, _as_json(answered), keeper.clean_error(event.data)))
                flight.land(None)
                return
            if seen is Seen.LAST:
                last = event
                break
            _gather(ready, keeper.clean(event.raw), spare=seen is Seen.SPARE)
        settle.seen = _seen(reading, settle)
        for datas, spare in ready:
            flight.open(flowing)
            piece = Piece(b"".join(datas), spare)
            kept_bytes += len(piece.data)
            if flight.kept:
                kept.append(piece.data)
                if kept_bytes > STREAM_BYTES:
                    kept.clear()
                    flight.let_go()
            await flight.put(piece)
        if last is not None:
            end = keeper.clean(last.raw)
            usage = reading.usage or _seen(reading, settle)
            body = b"".join([*kept, end]) if flight.kept and not reading.failed else None
            answer = await _recorded(answered, form, body)
            await settle.finish(answer, usage, facts)
            flight.open(flowing)
            await flight.put(Piece(end))
            flight.land(answer)
            await _drain(answered)
            return
    raise Broken("it ended without its mark")


def _as_json(answered: Answered) -> dict[str, str]:
    return {**answered.headers, "content-type": "application/json"}


def _events(splitter: Splitter, chunk: bytes) -> list[SseEvent]:
    try:
        return splitter.feed(chunk)
    except TooLong as error:
        raise Broken(str(error)) from None


def _gather(ready: list[tuple[list[bytes], bool]], data: bytes, *, spare: bool) -> None:
    """Events of one chunk of the provider's go on in one piece."""
    if not ready or ready[-1][1] != spare:
        ready.append(([], spare))
    ready[-1][0].append(data)


def _seen(reading: StreamReading, settle: Settle) -> ModelUsage:
    """What the provider said, and where it did not, what passed by."""
    told = reading.usage
    passed = tokens_of(reading.output_bytes)
    if told is None:
        return ModelUsage(input_tokens=settle.asked.reserve.input_tokens, output_tokens=passed, estimated=True)
    if told.output_tokens >= passed:
        return told
    return ModelUsage(told.input_tokens, passed, told.cache_read_tokens, told.cache_write_tokens, estimated=True)


async def _recorded(answered: Answered, form: Format, body: bytes | None) -> Answer | None:
    """As it came; as JSON, where it is too long so."""
    if body is None:
        return None
    headers = told_again(answered.headers)
    if len(body) <= RECORD_BYTES:
        return Answer(answered.status, headers, body, streamed=True)
    try:
        whole = await asyncio.to_thread(lambda: dump(form.assembled(split(body))))
    except ValueError:
        return None
    return Answer(answered.status, {**headers, "content-type": "application/json"}, whole, streamed=False)


async def _drain(answered: Answered) -> None:
    try:
        async with asyncio.timeout(_DRAIN_S):
            async for _ in answered.chunks:
                pass
    except (TimeoutError, Broken):
        pass  # the answer is whole all the same


async def _flow(
    begun: bytes, answered: Answered, flight: Flight, keeper: KeyKeeper, settle: Settle, facts: dict[str, int]
) -> None:
    """JSON too long to be kept: passed on as it comes, unread. `begun`: what there is of it."""
    settle.seen = settle.asked.reserve
    flight.let_go()
    flight.open(Flowing(answered.status, answered.headers, streamed=False))
    rest = begun
    async for chunk in answered.chunks:
        ready, rest = keeper.split(rest + chunk)
        await flight.put(Piece(ready))
    await settle.finish(None, settle.asked.reserve, facts)
    await flight.put(Piece(keeper.clean(rest)))
    flight.land(None)


async def _body(
    answered: Answered,
    flight: Flight,
    request: ModelRequest,
    keeper: KeyKeeper,
    settle: Settle,
    facts: dict[str, int],
) -> None:
    body = bytearray()
    async for chunk in answered.chunks:
        body += chunk
        if len(body) > RECORD_BYTES:
            await _flow(bytes(body), answered, flight, keeper, settle, facts)
            return
    clean = keeper.clean(bytes(body))
    form = FORMATS[request.api]
    said = await asyncio.to_thread(load, clean) if len(clean) > _LONG_BYTES else load(clean)
    if not said and "json" in answered.headers.get("content-type", "json"):
        raise Broken("what came is not the whole of a JSON object")
    usage = form.usage(said)
    if form.is_answer(said):
        spent = usage or ModelUsage(settle.asked.reserve.input_tokens, tokens_of(len(clean)), estimated=True)
        answer = Answer(answered.status, told_again(answered.headers), clean, streamed=False)
        await settle.finish(answer, spent, facts)
        flight.open(Whole(answer, replayed=False))
        flight.land(answer)
    else:
        await settle.finish(None, usage or ModelUsage(), facts)
        flight.open(Failed(answered.status, answered.headers, clean))
        flight.land(None)
