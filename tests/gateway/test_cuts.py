"""Property: clients that leave at any moment and providers that break at any moment, asked again until an answer is
whole: what was recorded is never made again, what is whole is right, and the money adds up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter

import httpx
import pytest

from orchestrator.models import ModelApi
from tests.gateway.providers import Asking, events, provider, whole
from tests.gateway.rig import ALL, Reached, Rig, asked, request_bytes
from tests.inputs import how_many

QUESTIONS = 8
ASKINGS = 30


@pytest.mark.parametrize("seed", range(how_many(6)))
async def test_whoever_breaks_when_a_recorded_answer_is_never_made_again(rig: Rig, seed: int) -> None:
    chance = random.Random(seed)
    api = ALL[seed % len(ALL)]
    made: Counter[str] = Counter()  # whole answers given, by question
    given: Counter[str] = Counter()  # requests

    async def fickle(asking: Asking) -> None:
        body = json.loads(asking.body)
        question = json.dumps(body.get("messages") or body["input"])
        given[question] += 1
        fate = chance.random()
        if fate < 0.15:
            asking.cut()
        elif fate < 0.25:
            await asking.answer(529, b"{}", "retry-after-ms: 1")
        elif not body.get("stream"):
            data = whole(api, "Hello.")
            if fate < 0.4:
                await asking.send(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n" + data)
                asking.cut()
            else:
                made[question] += 1
                await asking.answer(200, data, "content-type: application/json")
        else:
            await asking.stream_head()
            told = b"".join(events(api))
            until = chance.randrange(len(told)) if fate < 0.5 else len(told)
            if until == len(told):
                made[question] += 1
            place = 0
            while place < until:
                size = min(chance.randrange(1, 200), until - place)
                await asking.chunk(told[place : place + size])
                place += size
                await asyncio.sleep(0)
            if until == len(told):
                await asking.end()
            else:
                asking.cut()

    async with provider(fickle) as there:
        reached = await rig.gateway(rig.policy(there.url, retries=1))

        async def one(number: int) -> None:
            stream = chance.random() < 0.6
            key = f"m{number % QUESTIONS}"
            if chance.random() < 0.5:
                await leave_early(reached, api, key, stream, chance)
                return
            with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
                answer = await reached.ask(api, key, key=key, stream=stream)
                if answer.status_code == 200:
                    assert "Hello." in answer.text or ("Hel" in answer.text and "lo." in answer.text)
                else:
                    assert answer.status_code in (502, 529)

        for begin in range(0, ASKINGS, 6):
            await asyncio.gather(*(one(number) for number in range(begin, begin + 6)))
        # Until every question is answered, however often that takes.
        for number in range(QUESTIONS):
            key = f"m{number}"
            while True:
                with contextlib.suppress(httpx.RemoteProtocolError):
                    if (await reached.ask(api, key, key=key)).status_code == 200:
                        break
        assert set(made.values()) == {1}, made
        assert len(made) == QUESTIONS
        await reached.gateway.close(grace_s=30)
    spend = (await rig.execution()).spend
    assert (spend.reserved_micros, spend.reserved_tokens) == (0, 0)
    usages = [event for event in await rig.events("usage") if not event.data.get("replayed")]
    cuts = await rig.events("model.cut")
    assert spend.micros == sum(event.data["cost_micros"] for event in [*usages, *cuts])


async def leave_early(reached: Reached, api: ModelApi, key: str, stream: bool, chance: random.Random) -> None:
    """Ask, hear some of it, go."""
    reader, writer = await reached.dial()
    with contextlib.suppress(ConnectionError):
        writer.write(request_bytes(api, asked(api, key, stream=stream), f"idempotency-key: {key}"))
        await writer.drain()
        for _ in range(chance.randrange(4)):
            if not await reader.read(chance.randrange(1, 300)):
                break
    if chance.random() < 0.5:
        writer.transport.abort()
    writer.close()
