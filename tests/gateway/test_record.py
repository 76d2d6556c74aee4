"""The record: what makes two requests the same question, who shares one answer, and what is never recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from orchestrator.models import ModelApi
from tests.gateway.providers import Asking, answering, by_turns, events, provider, refusing, streaming, whole
from tests.gateway.rig import ALL, KEY, PATHS, Rig, asked, request_bytes, said, until

M, C, R = ModelApi.MESSAGES, ModelApi.CHAT, ModelApi.RESPONSES


async def test_without_a_key_each_asking_is_its_own_once_the_last_was_delivered(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        for _ in range(3):
            assert (await reached.ask(M)).status_code == 200
        assert len(there.asked) == 3


async def test_without_a_key_a_client_that_left_before_the_end_finds_the_answer(rig: Rig) -> None:
    go = asyncio.Event()

    async def slow(asking: Asking) -> None:
        await asking.stream_head()
        first, *rest = events(M)
        await asking.chunk(first)
        await go.wait()
        for event in rest:
            await asking.chunk(event)
        await asking.end()

    async with provider(slow) as there:
        reached = await rig.gateway(there.url)
        reader, writer = await reached.dial()
        writer.write(request_bytes(M, asked(M, stream=True)))
        await reader.readuntil(b"message_start")
        writer.close()
        go.set()
        answer = await reached.ask(M, stream=True)
        assert answer.content == b"".join(events(M))
        assert len(there.asked) == 1
        assert (await reached.ask(M, stream=True)).status_code == 200
        assert len(there.asked) == 2  # the second was delivered: this was another question


async def test_upstream_is_read_to_its_end_when_the_client_goes(rig: Rig) -> None:
    go = asyncio.Event()

    async def slow(asking: Asking) -> None:
        await go.wait()
        await asking.answer(200, whole(M), "content-type: application/json")

    async with provider(slow) as there:
        reached = await rig.gateway(there.url)
        _, writer = await reached.dial()
        writer.write(request_bytes(M, asked(M), "idempotency-key: m1"))
        await until(lambda: there.asked)
        writer.close()
        go.set()

        async def recorded() -> bool:
            return (await rig.execution()).spend.calls == 1

        await until(recorded)
        answer = await reached.ask(M, key="m1")
        assert answer.headers["x-carrel-replayed"] == "1"
        assert len(there.asked) == 1


@pytest.mark.parametrize("api", ALL)
async def test_two_who_ask_the_same_at_once_share_one_call_from_its_first_byte(rig: Rig, api: ModelApi) -> None:
    go = asyncio.Event()

    async def slow(asking: Asking) -> None:
        await asking.stream_head()
        *most, last = events(api)
        for event in most:
            await asking.chunk(event)
        await go.wait()
        await asking.chunk(last)
        await asking.end()

    async with provider(slow) as there:
        reached = await rig.gateway(there.url)

        async def listen() -> bytes:
            heard = b""
            async with reached.client.stream("POST", PATHS[api], json=asked(api, stream=True)) as answer:
                async for data in answer.aiter_raw():
                    heard += data
                    started.release()
            return heard

        started = asyncio.Semaphore(0)
        first = asyncio.create_task(listen())
        await started.acquire()
        second = asyncio.create_task(listen())
        whole_json = asyncio.create_task(reached.ask(api))
        await started.acquire()
        go.set()
        assert await first == await second
        assert said(api, (await whole_json).json()) == "Hello."
        assert len(there.asked) == 1


async def test_the_answers_end_is_passed_on_only_when_it_is_recorded(rig: Rig) -> None:
    async with provider(streaming(M)) as there:
        reached = await rig.gateway(there.url)
        seen: list[int] = []
        async with reached.client.stream("POST", PATHS[M], json=asked(M, stream=True)) as answer:
            heard = b""
            async for data in answer.aiter_raw():
                heard += data
                if b"message_stop" in heard:
                    seen.append((await rig.execution()).spend.calls)
        assert seen == [1]


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("api", ALL)
async def test_a_stream_without_its_mark_is_broken_off_and_no_record(rig: Rig, api: ModelApi, clean: bool) -> None:
    async with provider(by_turns(streaming(api, cut_after=2, clean=clean), streaming(api))) as there:
        reached = await rig.gateway(there.url)
        got = await reached.raw(request_bytes(api, asked(api, stream=True), "idempotency-key: m1"))
        assert events(api)[0].splitlines()[0] in got
        assert not got.endswith(b"0\r\n\r\n")
        with pytest.raises(httpx.RemoteProtocolError):
            async with provider(streaming(api, cut_after=2)) as other:
                await (await rig.gateway(other.url)).ask(api, stream=True)
        answer = await reached.ask(api, stream=True, key="m1")
        assert said(api, (await reached.ask(api, key="m1")).json()) == "Hello."
        assert "x-carrel-replayed" not in answer.headers
        assert len(there.asked) == 2
        cuts = await rig.events("model.cut")
        assert len(cuts) == 2
        assert all(cut.data["cost_micros"] > 0 for cut in cuts)


async def test_json_that_breaks_off_is_an_error_and_no_record(rig: Rig) -> None:
    async def half(asking: Asking) -> None:
        await asking.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{")
        asking.cut()

    async with provider(by_turns(half, answering(M))) as there:
        reached = await rig.gateway(there.url)
        broken = await reached.ask(M, key="m1")
        assert broken.status_code == 502
        assert broken.json()["error"]["type"] == "api_error"
        assert (await reached.ask(M, key="m1")).status_code == 200
        assert len(there.asked) == 2


async def test_an_error_is_passed_on_and_no_record(rig: Rig) -> None:
    body = b'{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens: too large"}}'
    async with provider(by_turns(refusing(400, body, "request-id: req_1"), answering(M))) as there:
        reached = await rig.gateway(there.url)
        refused = await reached.ask(M, key="m1")
        assert (refused.status_code, refused.content, refused.headers["request-id"]) == (400, body, "req_1")
        assert (await reached.ask(M, key="m1")).status_code == 200
        spend = (await rig.execution()).spend
        assert (spend.micros, spend.reserved_micros) == (16, 0)


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (M, {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}),
        (C, {"error": {"message": "x"}}),
        (R, {"id": "resp_1", "status": "failed", "output": [], "error": {"message": "x"}}),
    ],
)
async def test_a_failure_that_comes_as_a_success_is_no_record(rig: Rig, api: ModelApi, body: dict[str, Any]) -> None:
    async with provider(by_turns(refusing(200, json.dumps(body).encode()), answering(api))) as there:
        reached = await rig.gateway(there.url)
        assert (await reached.ask(api, key="m1")).json() == body
        assert said(api, (await reached.ask(api, key="m1")).json()) == "Hi."


async def test_a_failed_response_ends_cleanly_and_is_no_record(rig: Rig) -> None:
    async def failing(asking: Asking) -> None:
        done = json.loads(whole(R)) | {"status": "failed", "output": [], "error": {"code": "server_error"}}
        await asking.stream_head()
        await asking.chunk(b"event: response.failed\ndata: " + json.dumps({"response": done}).encode() + b"\n\n")
        await asking.end()

    async with provider(by_turns(failing, streaming(R))) as there:
        reached = await rig.gateway(there.url)
        assert b"response.failed" in (await reached.ask(R, stream=True, key="m1")).content
        assert b"response.completed" in (await reached.ask(R, stream=True, key="m1")).content


OVERLOADED = b'{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}'


@pytest.mark.parametrize(
    ("api", "error", "status"),
    [(M, b"event: error\ndata: " + OVERLOADED + b"\n\n", 529), (C, b'data: {"error":{"code":429}}\n\n', 429)],
)
async def test_a_stream_that_begins_with_an_error_is_that_error(
    rig: Rig, api: ModelApi, error: bytes, status: int
) -> None:
    async def failing(asking: Asking) -> None:
        await asking.stream_head()
        await asking.chunk(error)
        await asking.end()

    async with provider(by_turns(failing, streaming(api))) as there:
        reached = await rig.gateway(there.url)
        answer = await reached.ask(api, stream=True, key="m1")
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
        assert "error" in answer.json()
        assert (await reached.ask(api, stream=True, key="m1")).status_code == 200
        assert not await rig.events("model.cut")


async def test_a_stream_that_fails_on_the_way_says_so_and_has_no_end(rig: Rig) -> None:
    async def failing(asking: Asking) -> None:
        await asking.stream_head()
        await asking.chunk(events(M)[0])
        await asking.chunk(b"event: error\ndata: " + OVERLOADED + b"\n\n")
        await asking.end()

    async with provider(failing) as there:
        reached = await rig.gateway(there.url)
        got = await reached.raw(request_bytes(M, asked(M, stream=True)))
        assert OVERLOADED in got
        assert not got.endswith(b"0\r\n\r\n")
        assert len(await rig.events("model.cut")) == 1


async def test_json_too_long_for_a_record_is_passed_on_and_the_key_kept_out_of_it(rig: Rig) -> None:
    body = whole(C, "x" * (9 << 20) + KEY + "y" * 1000)
    middle = body.index(KEY.encode()) + 7

    async def long(asking: Asking) -> None:
        await asking.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        await asking.chunk(body[:middle])
        await asking.chunk(body[middle:])
        await asking.end()

    async with provider(long) as there:
        reached = await rig.gateway(there.url)
        for number in range(2):
            answer = await reached.ask(C, key="m1")
            assert answer.content == body.replace(KEY.encode(), b"[key]")
            assert len(there.asked) == number + 1


SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"user": "a"}, {"user": "b"}),
    ({"metadata": {"user_id": "a"}}, {}),
    ({"prompt_cache_key": "a"}, {"prompt_cache_key": "b"}),
    ({"stream": True}, {}),
    ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True}),
    ({"temperature": 0.5, "top_p": 1}, {"top_p": 1, "temperature": 0.5}),
]
OTHER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0.5}, {"temperature": 0.6}),
    ({"model": "cheap-2"}, {}),
    ({"text": "other"}, {}),
]


@pytest.mark.parametrize(("one", "other", "calls"), [*((*p, 1) for p in SAME), *((*p, 2) for p in OTHER)])
async def test_what_makes_two_requests_the_same(
    rig: Rig, one: dict[str, Any], other: dict[str, Any], calls: int
) -> None:
    async def either(asking: Asking) -> None:
        await (streaming(C) if json.loads(asking.body).get("stream") else answering(C))(asking)

    async with provider(either) as there:
        reached = await rig.gateway(there.url)
        assert (await reached.ask(C, key="m1", **one)).status_code == 200
        assert (await reached.ask(C, key="m1", **other)).status_code == 200
        assert len(there.asked) == calls


async def test_a_key_that_a_library_drew_for_one_sending_is_none(rig: Rig) -> None:
    async with provider(answering(C)) as there:
        reached = await rig.gateway(there.url)
        for number in range(2):
            await reached.ask(C, key=f"stainless-node-retry-{number}")
        assert len(there.asked) == 2
        # From scratch, in another attempt: the answers are found by the order of the questions.
        assert rig.lease is not None
        lease = await rig.store.next_attempt(rig.lease, own=3)
        again = await rig.gateway(there.url, lease=lease)
        for number in range(2):
            await again.ask(C, key=f"stainless-node-retry-{7 + number}")
        assert len(there.asked) == 2


async def test_another_worker_answers_from_the_record_and_counts_what_was_cut(rig: Rig) -> None:
    never = asyncio.Event()

    async def hang(asking: Asking) -> None:
        await asking.stream_head()
        await asking.chunk(events(M)[0])
        await never.wait()

    async with provider(by_turns(answering(M), hang, answering(M, "Again."))) as there:
        reached = await rig.gateway(there.url)
        await reached.ask(M, key="m1")
        _, writer = await reached.dial()
        writer.write(request_bytes(M, asked(M, "two", stream=True), "idempotency-key: m2"))
        await until(lambda: len(there.asked) == 2)
        lease = await rig.store.adopted()
        after = await rig.gateway(there.url, lease=lease)
        assert len(await rig.events("model.cut")) == 1
        assert (await after.ask(M, key="m1")).headers["x-carrel-replayed"] == "1"
        assert said(M, (await after.ask(M, "two", key="m2")).json()) == "Again."
        # The old one is fenced: it says nothing more, and nothing of it counts.
        assert await reached.raw(request_bytes(M, asked(M, "three"))) == b""
        assert b" 503 " in await reached.raw(request_bytes(M, asked(M, "three")))
        writer.close()


async def test_a_long_stream_is_recorded_as_json_and_streamed_again(rig: Rig) -> None:
    text = "x" * 40

    async def long(asking: Asking) -> None:
        async def all_events() -> AsyncIterator[bytes]:
            first, begin, _, *rest = events(M, text)
            yield first + begin
            delta = events(M, text)[2]
            for _ in range(100):
                yield delta * 1000
            yield b"".join(rest)

        await asking.stream_head()
        async for event in all_events():
            await asking.chunk(event)
        await asking.end()

    async with provider(long) as there:
        reached = await rig.gateway(there.url)
        first = await reached.ask(M, stream=True, key="m1")
        assert len(first.content) > 8 << 20
        again = await reached.ask(M, stream=True, key="m1")
        assert again.headers["x-carrel-replayed"] == "1"
        assert len(again.content) < 8 << 20
        assert said(M, (await reached.ask(M, key="m1")).json()) == text * 100_000
        assert len(there.asked) == 1
