"""Providers that fail, are busy, send elsewhere, or give the key away: what the gateway makes of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from datetime import UTC, datetime
from random import Random

import pytest

from orchestrator.gateway.patience import Patience, asked_s, may_be_asked_again
from orchestrator.models import ModelApi, ModelPolicy, Provider
from tests.gateway.providers import (
    Asking,
    answering,
    by_turns,
    events,
    provider,
    refusing,
    streaming,
    whole,
)
from tests.gateway.rig import ALL, KEY, PATHS, Rig, asked, request_bytes, said, until

M, C, R = ModelApi.MESSAGES, ModelApi.CHAT, ModelApi.RESPONSES


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
async def test_a_busy_provider_is_asked_again(rig: Rig, status: int) -> None:
    async with provider(by_turns(refusing(status, b"{}", "retry-after-ms: 1"), answering(M))) as there:
        reached = await rig.gateway(there.url)
        answer = await reached.ask(M)
        assert said(M, answer.json()) == "Hi."
        assert len(there.asked) == 2
        assert there.asked[0].body == there.asked[1].body
        assert (await rig.events("usage"))[0].data["retries"] == 1


async def test_it_is_asked_so_often_and_then_its_error_is_the_answer(rig: Rig) -> None:
    body = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'
    async with provider(refusing(529, body, "retry-after-ms: 1")) as there:
        reached = await rig.gateway(rig.policy(there.url, retries=3))
        answer = await reached.ask(M)
        assert (answer.status_code, answer.content) == (529, body)
        assert len(there.asked) == 4


async def test_a_provider_that_wants_us_later_than_we_may_wait_is_passed_on(rig: Rig) -> None:
    async with provider(refusing(429, b"{}", "retry-after: 3600")) as there:
        reached = await rig.gateway(there.url)
        answer = await reached.ask(M)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3600")
        assert len(there.asked) == 1


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (400, b"{}", ()),
        (404, b"{}", ()),
        (429, b'{"error":{"code":"insufficient_quota","message":"x"}}', ()),
        (500, b"{}", ("x-should-retry: false",)),
    ],
)
async def test_what_will_not_get_better_is_not_asked_again(
    rig: Rig, status: int, body: bytes, headers: tuple[str, ...]
) -> None:
    async with provider(refusing(status, body, *headers)) as there:
        reached = await rig.gateway(there.url)
        assert (await reached.ask(C)).status_code == status
        assert len(there.asked) == 1


async def test_a_connection_that_dies_before_an_answer_is_made_anew(rig: Rig) -> None:
    async def gone(asking: Asking) -> None:
        asking.cut()

    async with provider(by_turns(gone, answering(M))) as there:
        reached = await rig.gateway(there.url)
        assert (await reached.ask(M)).status_code == 200
        assert len(there.asked) == 2


async def test_a_provider_that_is_not_there_costs_nothing(rig: Rig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        reached = await rig.gateway(rig.policy(f"http://127.0.0.1:{taken.getsockname()[1]}", retries=1))
        answer = await reached.ask(M)
    assert answer.status_code == 502
    assert "testing does not answer" in answer.json()["error"]["message"]
    spend = (await rig.execution()).spend
    assert (spend.micros, spend.reserved_micros, spend.calls) == (0, 0, 0)


async def test_nothing_is_asked_again_once_a_byte_was_passed_on(rig: Rig) -> None:
    async with provider(streaming(M, cut_after=1)) as there:
        reached = await rig.gateway(there.url)
        assert b"message_start" in await reached.raw(request_bytes(M, asked(M, stream=True)))
        assert len(there.asked) == 1


async def test_nobody_asks_again_for_a_client_that_left(rig: Rig) -> None:
    async with provider(refusing(529, b"{}")) as there:
        reached = await rig.gateway(there.url)
        _, writer = await reached.dial()
        writer.write(request_bytes(M, asked(M)))
        await until(lambda: there.asked)
        writer.close()

        async def given_back() -> bool:
            return (await rig.execution()).spend.reserved_micros == 0

        await until(given_back)
        assert len(there.asked) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_42_a_redirect_is_an_error_and_the_key_goes_nowhere(rig: Rig, status: int) -> None:
    async with provider(answering(M)) as elsewhere:
        async with provider(refusing(status, b"", f"location: {elsewhere.url}/v1/messages")) as there:
            reached = await rig.gateway(there.url)
            answer = await reached.ask(M)
            assert answer.status_code == 502
            assert answer.json()["error"]["code"] == "provider_redirected"
            assert "location" not in answer.headers
            assert len(there.asked) == 1
        assert elsewhere.connections == 0


@pytest.mark.parametrize("api", ALL)
async def test_only_the_key_goes_up_and_nothing_of_the_clients_own(rig: Rig, api: ModelApi) -> None:
    async with provider(answering(api)) as there:
        reached = await rig.gateway(there.url)
        headers = {
            "cookie": "a=b",
            "proxy-authorization": "Basic x",
            "x-forwarded-for": "10.0.0.1",
            "openai-organization": "org-mine",
            "te": "trailers",
            "connection": "keep-alive, x-odd",
            "x-odd": "1",
            "idempotency-key": "m1",
            "anthropic-beta": "one",
            "accept-encoding": "gzip",
        }
        await reached.client.post(PATHS[api], json=asked(api), headers=headers)
        [asking] = there.asked
        sent = {name.decode(): value.decode() for name, value in asking.head.headers}
        key = {"x-api-key": KEY, "anthropic-version": "2023-06-01"} if api is M else {"authorization": f"Bearer {KEY}"}
        assert key.items() <= sent.items()
        assert set(sent) <= {
            *("host", "connection", "content-length", "content-type", "accept", "accept-encoding", "user-agent"),
            *("anthropic-beta", *key),
        }
        assert sent["accept-encoding"] == "identity"
        assert sent["anthropic-beta"] == "one"
        token = reached.client.headers["authorization"].partition(" ")[2]
        assert token not in json.dumps(sent)


@pytest.mark.parametrize("status", [200, 400, 401, 500])
@pytest.mark.parametrize("stream", [False, True])
async def test_39_a_provider_that_gives_the_key_away_tells_it_to_nobody(rig: Rig, status: int, stream: bool) -> None:
    async def telling(asking: Asking) -> None:
        key = asking.header("x-api-key")
        assert key == KEY
        headers = (f"request-id: {key}", f"x-ratelimit-{key}: {key}", f"set-cookie: k={key}", f"x-echo: {key}")
        if status == 200 and stream:
            await asking.stream_head(*headers)
            for event in events(M, key, f"Bearer {key}"):
                await asking.chunk(event)
            await asking.end()
        else:
            body = whole(M, key) if status == 200 else json.dumps({"error": {"message": f"bad key {key}"}}).encode()
            await asking.answer(status, body, "content-type: application/json", *headers)

    async with provider(telling) as there:
        reached = await rig.gateway(rig.policy(there.url, retries=0))
        answer = await reached.ask(M, stream=stream, key="m1")
        assert answer.status_code == status
        again = await reached.ask(M, stream=not stream, key="m1")
        for one in (answer, again):
            assert KEY not in one.text
            assert "[key]" in one.text
            assert KEY not in str(one.headers)
            assert "set-cookie" not in one.headers
        for event in await rig.events("usage", "model.cut", "model.refused"):
            assert KEY not in str(event.data)
        for found in await rig.store.server.ask("KEYS", f"{rig.store.keys.prefix}*"):
            dumped = await rig.store.server.ask("DUMP", found)
            assert KEY.encode() not in dumped


async def test_configured_headers_go_up_and_are_as_secret(rig: Rig) -> None:
    secret = "Bearer other-secret-value"

    async def telling(asking: Asking) -> None:
        assert asking.header("authorization") == secret
        await asking.answer(400, json.dumps({"error": {"message": "other-secret-value"}}).encode())

    async with provider(telling) as there:
        policy = ModelPolicy(providers=(Provider("p", there.url, ALL, headers={"Authorization": secret}),))
        answer = await (await rig.gateway(policy)).ask(C)
        assert answer.json() == {"error": {"message": "[key]"}}


async def test_a_key_that_is_a_word_stays_a_word_in_answers(rig: Rig) -> None:
    async with provider(by_turns(answering(C, "Ask ollama."), refusing(400, b'{"error":"ollama"}'))) as there:
        reached = await rig.gateway(ModelPolicy(providers=(Provider("p", there.url, ALL, key="ollama"),)))
        assert said(C, (await reached.ask(C)).json()) == "Ask ollama."
        assert (await reached.ask(C)).json() == {"error": "[key]"}


async def test_a_provider_that_packs_unasked_is_unpacked(rig: Rig) -> None:
    async def packing(asking: Asking) -> None:
        await asking.answer(200, gzip.compress(whole(M)), "content-encoding: gzip", "content-type: application/json")

    async with provider(packing) as there:
        answer = await (await rig.gateway(there.url)).ask(M)
        assert said(M, answer.json()) == "Hi."
        assert "content-encoding" not in answer.headers


async def test_a_provider_that_does_not_close_after_its_mark_holds_nobody_up(rig: Rig) -> None:
    never = asyncio.Event()

    async def open_end(asking: Asking) -> None:
        await asking.stream_head()
        for event in events(M):
            await asking.chunk(event)
        await never.wait()

    async with provider(open_end) as there:
        reached = await rig.gateway(there.url)
        answer = await reached.ask(M, stream=True, key="m1")
        assert answer.content == b"".join(events(M))
        assert (await reached.ask(M, stream=True, key="m1")).headers["x-carrel-replayed"] == "1"


async def test_events_pass_as_they_come(rig: Rig) -> None:
    told: asyncio.Queue[bytes] = asyncio.Queue()

    async def slow(asking: Asking) -> None:
        await asking.stream_head()
        while data := await told.get():
            await asking.chunk(data)
        await asking.end()

    async with provider(slow) as there:
        reached = await rig.gateway(there.url)
        *most, last = events(M, *"abcdef")
        told.put_nowait(most[0])
        async with reached.client.stream("POST", PATHS[M], json=asked(M, stream=True)) as answer:
            heard = answer.aiter_raw()
            assert await anext(heard) == most[0]
            for event in most[1:]:
                told.put_nowait(event)
                assert await anext(heard) == event
            told.put_nowait(last[:9])  # half a mark is nothing yet
            told.put_nowait(last[9:])
            told.put_nowait(b"")
            assert await anext(heard) == last


async def test_one_connection_serves_many_calls_of_many_gateways(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        for number in range(5):
            await reached.ask(M, str(number))
        assert (len(there.asked), there.connections) == (5, 1)


async def test_where_the_provider_does_not_say_its_cost_is_estimated(rig: Rig) -> None:
    async def mute(asking: Asking) -> None:
        await asking.answer(200, whole(M, "x" * 300, usage=False), "content-type: application/json")

    async with provider(mute) as there:
        await (await rig.gateway(there.url)).ask(M)
    [usage] = await rig.events("usage")
    assert usage.data["estimated"] is True
    assert usage.data["output_tokens"] >= 100
    assert usage.data["cost_micros"] > 200


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "Thu, 01 Jan 2026 00:01:00 GMT"}, 60.0),
        ({"retry-after": "Thu, 01 Jan 2015 00:01:00 GMT"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "nan-sense"}, None),
    ],
)
def test_when_a_provider_wants_us_again(headers: dict[str, str], seconds: float | None) -> None:
    assert asked_s(headers, NOW) == seconds


def test_patience_grows_and_ends() -> None:
    chance = Random(1)
    patience = Patience(retries=4, wait_s=60)
    pauses = []
    while (pause_s := patience.pause_s(chance, None)) is not None:
        pauses.append(pause_s)
        patience = patience.after(pause_s)
    assert len(pauses) == 4
    assert all(0.25 * 2**n <= pause_s <= 0.5 * 2**n for n, pause_s in enumerate(pauses))
    assert Patience(retries=4, wait_s=5).pause_s(chance, 6.0) is None
    assert 5 <= (Patience(retries=4, wait_s=60).pause_s(chance, 5.0) or 0) <= 5.5
    assert not may_be_asked_again(429, {}, b'{"error":{"code":"insufficient_quota"}}')
    assert may_be_asked_again(429, {}, b"not json")
    assert may_be_asked_again(409, {"x-should-retry": "true"}, b"")
