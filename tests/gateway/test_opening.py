"""A gateway opened over another, closed with calls under way, fenced, its store away; and nothing left of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from orchestrator.clock import SystemClock
from orchestrator.errors import Fenced
from orchestrator.gateway.unix import UnixGateways
from orchestrator.models import ModelApi
from orchestrator.stores import embedded
from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server
from tests.contracts.redis_store import Store
from tests.gateway.providers import Asking, answering, events, provider, streaming
from tests.gateway.rig import SECRET, Reached, Rig, asked, client_of, request_bytes, said, until

M = ModelApi.MESSAGES


def ours() -> set[str]:
    """What runs of a gateway."""
    return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("gateway-")}


async def refuses(reached: Reached) -> bool:
    try:
        _, writer = await reached.dial()
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


async def test_close_waits_for_the_call_under_way_and_takes_nothing_new(rig: Rig) -> None:
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
        waiting = await reached.dial()  # connected, nothing asked yet
        asking = asyncio.create_task(reached.ask(M, stream=True))
        await until(lambda: there.asked)
        closing = asyncio.create_task(reached.gateway.close(grace_s=60))
        await until(lambda: refuses(reached))
        waiting[1].write(request_bytes(M, asked(M, "new")))
        assert await waiting[0].read() == b""
        assert not closing.done()
        go.set()
        assert (await asking).content == b"".join(events(M))
        await closing
        assert len(there.asked) == 1
        assert not ours()
        waiting[1].close()


async def test_close_cuts_what_outlives_its_grace_and_settles_it(rig: Rig) -> None:
    never = asyncio.Event()

    async def hang(asking: Asking) -> None:
        await asking.stream_head()
        await asking.chunk(events(M)[0])
        await never.wait()

    async with provider(hang) as there:
        reached = await rig.gateway(there.url)
        reader, writer = await reached.dial()
        writer.write(request_bytes(M, asked(M, stream=True)))
        await reader.readuntil(b"message_start")
        await reached.gateway.close(grace_s=0.05)
        rest = await reader.read()
        assert not rest.endswith(b"0\r\n\r\n")
        writer.close()
        assert len(await rig.events("model.cut")) == 1
        assert (await rig.execution()).spend.reserved_micros == 0
        await reached.gateway.close(grace_s=5)  # again: nothing
        assert not ours()


async def test_another_one_takes_the_place(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        held = await reached.dial()
        async with UnixGateways(
            rig.policy(there.url), rig.store.calls, rig.store.intents, SystemClock(), SECRET
        ) as others:
            assert rig.lease is not None

            async def tell(entry: object) -> None:
                rig.told.append(entry)  # type: ignore[arg-type]

            after = await others.open(rig.lease, await rig.execution(), reached.at, tell=tell, held=lambda: True)
            try:
                async with client_of(reached.at) as client:
                    rig.held = False  # the first one refuses from here on
                    assert (await client.post("/v1/messages", json=asked(M))).status_code == 200
            finally:
                await after.close(grace_s=0)
        held[1].close()


async def test_a_long_path_is_no_hindrance(rig: Rig, tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 30)
    folder.mkdir()
    async with UnixGateways(
        rig.policy("http://127.0.0.1:9"), rig.store.calls, rig.store.intents, SystemClock(), SECRET
    ) as some:
        lease = await rig.store.running()

        async def tell(entry: object) -> None:
            raise AssertionError(entry)

        at = folder / "gateway.sock"
        opened = await some.open(lease, await rig.execution(), at, tell=tell, held=lambda: True)
        try:
            assert at.is_socket()
            assert at.stat().st_mode & 0o777 == 0o666
            assert [path.name for path in folder.iterdir()] == ["gateway.sock"]
        finally:
            await opened.close(grace_s=0)


async def test_open_is_fenced(rig: Rig) -> None:
    await rig.gateway("http://127.0.0.1:9")
    assert rig.lease is not None
    await rig.store.adopted()
    with pytest.raises(Fenced):
        await rig.gateway("http://127.0.0.1:9", lease=rig.lease)


async def test_a_call_that_loses_its_lease_on_the_way_ends_without_an_end(rig: Rig) -> None:
    go = asyncio.Event()

    async def slow(asking: Asking) -> None:
        *most, last = events(M)
        await asking.stream_head()
        for event in most:
            await asking.chunk(event)
        await go.wait()
        await asking.chunk(last)
        await asking.end()

    async with provider(slow) as there:
        reached = await rig.gateway(there.url)
        reader, writer = await reached.dial()
        writer.write(request_bytes(M, asked(M, stream=True)))
        await reader.readuntil(b"message_delta")
        await rig.store.adopted()
        go.set()
        rest = await reader.read()
        assert b"message_stop" not in rest
        assert not rest.endswith(b"0\r\n\r\n")
        writer.close()


@pytest.mark.xdist_group("own store")
async def test_while_the_store_is_away_nothing_is_made_and_an_answers_end_waits(short_dir: Path) -> None:
    running = embedded.ensure(short_dir)
    keys = Keys("away")
    server = Server(running.url)
    history = RedisHistory(server, keys)
    rig = Rig(Store(server, keys, RedisExecutions(server, keys), history), short_dir)
    go = asyncio.Event()

    async def slow(asking: Asking) -> None:
        await go.wait()
        await streaming(M)(asking)

    try:
        async with provider(slow) as there:
            reached = await rig.gateway(there.url)
            asking = asyncio.create_task(reached.ask(M, stream=True, key="m1"))
            await until(lambda: there.asked)
            embedded.shutdown(short_dir)
            refused = await reached.ask(M, "another")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            go.set()
            assert not asking.done()
            embedded.ensure(short_dir)
            assert (await asking).content == b"".join(events(M))
            assert said(M, (await reached.ask(M, key="m1")).json()) == "Hello."
            assert len(there.asked) == 1
    finally:
        await rig.aclose()
        await history.aclose()
        await server.aclose()
        embedded.shutdown(short_dir)


async def test_nothing_is_left_running(rig: Rig) -> None:
    async with provider(streaming(M)) as there:
        reached = await rig.gateway(there.url)
        for number in range(3):
            await reached.ask(M, str(number), stream=True)
        await reached.raw(b"garbage\r\n\r\n")
        await reached.gateway.close(grace_s=1)
        assert not ours()
