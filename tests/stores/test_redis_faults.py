"""The store while its server is killed, started again, or loses replies on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.calls import Answer, Asked, ModelUsage, Replay, Reserved
from orchestrator.errors import StoreUnavailable
from orchestrator.events import Cursor
from orchestrator.execution import CancelWant, Spend
from orchestrator.executions import Claim
from orchestrator.history import Lease
from orchestrator.intents import Begun, Decision, Effect, IntentState
from orchestrator.stores import embedded
from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server
from orchestrator.stores.redis.connection import LineLost
from tests.contracts.redis_store import Store, lines
from tests.stores.cutting_proxy import CuttingProxy


@pytest.fixture
def data_dir(short_dir: Path) -> Iterator[Path]:
    embedded.ensure(short_dir)
    yield short_dir
    embedded.shutdown(short_dir)


def store_at(url: str, *, patience_s: float = 5.0) -> Store:
    server, keys = Server(url, patience_s=patience_s), Keys("t")
    return Store(server, keys, RedisExecutions(server, keys), RedisHistory(server, keys))


@pytest.fixture
async def store(data_dir: Path) -> AsyncIterator[Store]:
    made = store_at(embedded.redis_url(data_dir), patience_s=20.0)
    yield made
    await made.history.aclose()
    await made.server.aclose()


def kill(data_dir: Path) -> None:
    """SIGKILL, and it is gone when this returns."""
    pid = embedded.ensure(data_dir).pid
    handle = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([handle], [], [], 10)[0]
    finally:
        os.close(handle)


async def start(data_dir: Path) -> None:
    await asyncio.to_thread(embedded.ensure, data_dir)


class TestKilled:
    async def test_what_was_acknowledged_is_there(self, data_dir: Path, store: Store) -> None:
        """Killed straight after 200 acknowledgements of submit and send."""
        for n in range(100):
            await store.submitted(f"exe_{n:03}")
            await store.history.send(f"exe_{n:03}", "m1", f"text {n}".encode())
        kill(data_dir)
        await start(data_dir)
        for n in range(100):
            execution = await store.executions.get(f"exe_{n:03}")
            assert (execution.tail, execution.inbox_tail) == (2, 1)
            assert [m.body for m in await store.history.inbox(execution.id, 0)] == [f"text {n}".encode()]
        claimed = set()
        while isinstance(claim := await store.executions.claim("w1", "h1", lease_s=600), Claim):
            claimed.add(claim.execution.id)
        assert len(claimed) == 100

    async def test_answers_paid_for_and_intents_told_are_there(self, data_dir: Path, store: Store) -> None:
        """Killed straight after the last acknowledgement: nothing is paid for again, nothing run again."""
        lease = await store.running()
        for n in range(50):
            await answered(store, lease, n)
            assert (await intended(store, lease, n, "r1")).go
        kill(data_dir)
        await start(data_dir)
        spend = (await store.executions.get("exe_a")).spend
        assert spend == Spend(micros=50 * 7, input_tokens=50, output_tokens=100, calls=50)
        for n in range(50):
            replay = await store.calls.begin(lease, 1, asked(n))
            assert isinstance(replay, Replay)
            assert replay.answer.body == f"answer {n}".encode()
            assert not (await intended(store, lease, n, "r2")).go

    async def test_everybody_goes_on_when_it_is_back(self, data_dir: Path, store: Store) -> None:
        """Killed three times under a writer, a sender and five followers: nothing lost, nothing twice."""
        lease = await store.running()
        progress = asyncio.Event()

        async def watch() -> list[int]:
            seen: list[int] = []
            async for page in store.history.follow("exe_a", Cursor()):
                seen += [e.seq for e in page.events]
            return seen

        async def write() -> None:
            for first in range(1, 3001, 10):
                await store.history.append(lease, attempt=1, spooled=lines(first, first + 9))
                if first % 700 == 1:
                    progress.set()

        async def send() -> None:
            for n in range(100):
                await store.history.send("exe_a", f"m{n}", b"x")

        watchers = [asyncio.create_task(watch()) for _ in range(5)]
        work = [asyncio.create_task(write()), asyncio.create_task(send())]
        for _ in range(3):
            progress.clear()
            await progress.wait()
            await asyncio.to_thread(kill, data_dir)
            await start(data_dir)
        await asyncio.gather(*work)
        end = await store.finish(lease, own=3)
        for seen in await asyncio.gather(*watchers):
            assert seen == list(range(1, end.tail + 1))
        bodies, cursor = [], Cursor()
        while cursor.seq < end.tail:
            page = await store.history.read("exe_a", cursor)
            bodies += [e.body for e in page.events if e.type == "output"]
            cursor = page.next
        assert bodies == [f"line {n}\n".encode() for n in range(1, 3001)]
        assert [m.id for m in await store.history.inbox("exe_a", 0, limit=200)] == [f"m{n}" for n in range(100)]

    async def test_a_sleeping_worker_is_told_to_look(self, data_dir: Path, store: Store) -> None:
        waiting = asyncio.create_task(store.executions.wait("w1", shared=True, timeout_s=60))
        while not await store.server.ask("CLIENT", "LIST", "TYPE", "normal") or b"cmd=blpop" not in (
            await store.server.ask("CLIENT", "LIST")
        ):
            await asyncio.sleep(0.005)
        kill(data_dir)
        await start(data_dir)
        assert await waiting == ("*",)

    async def test_after_its_patience_it_says_so(self, data_dir: Path) -> None:
        store = store_at(embedded.redis_url(data_dir), patience_s=0.3)
        await store.running()
        following = store.history.follow("exe_a", Cursor())
        await anext(following)
        kill(data_dir)
        with pytest.raises(StoreUnavailable) as refused:
            await store.executions.get("exe_a")
        assert refused.value.data["retry_after_s"] > 0
        with pytest.raises(StoreUnavailable):
            await store.submitted("exe_b")
        with pytest.raises(StoreUnavailable):
            await anext(following)
        assert (await store.executions.ready())["store"] != ""
        await start(data_dir)
        assert (await store.executions.get("exe_a")).tail == 4
        await store.server.aclose()

    async def test_one_that_hangs_is_not_waited_for(self, data_dir: Path) -> None:
        store = store_at(embedded.redis_url(data_dir), patience_s=0.3)
        await store.submitted("exe_a")
        pid = embedded.ensure(data_dir).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable):
                await store.executions.get("exe_a")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert (await store.executions.get("exe_a")).id == "exe_a"  # and its late answer is not taken for this one's
        await store.server.aclose()

    async def test_forgotten_scripts_are_taught_again(self, store: Store) -> None:
        await store.submitted("exe_a")
        await store.server.ask("SCRIPT", "FLUSH")
        await store.submitted("exe_b")
        assert len([e async for e in store.executions.everything()]) == 2


class TestLostReplies:
    async def test_nothing_happens_twice(self, data_dir: Path, short_dir: Path) -> None:
        """A third of all replies are lost; what was asked is asked again by the store itself."""
        dice = random.Random(11)
        proxy = CuttingProxy(short_dir / "p.sock", short_dir / "redis" / "redis.sock", lambda: dice.random() < 0.33)
        async with proxy.running():
            store = store_at(proxy.url, patience_s=30.0)
            for n in range(20):
                await store.submitted(f"exe_{n:02}", name=f"n{n}")
            claims = []
            while isinstance(claim := await store.executions.claim("w1", "h1", lease_s=600), Claim):
                claims.append(claim)
            assert [(c.execution.id, c.lease.epoch) for c in claims] == [(f"exe_{n:02}", 1) for n in range(20)]
            lease = claims[0].lease
            await store.place(lease, own=1)
            for first in range(1, 101, 5):
                await store.history.append(lease, attempt=1, spooled=lines(first, first + 4))
                await store.history.send("exe_00", f"m{first}", b"x")
                await store.executions.renew(lease)
            for n in range(1, 20):
                await store.executions.release(claims[n].lease)
                await store.executions.want(f"exe_{n:02}", CancelWant("c1", 0))
                await store.executions.remove(f"exe_{n:02}")
            page = await store.history.read("exe_00", Cursor())
            await store.server.aclose()
        assert proxy.cuts > 50
        assert [e.seq for e in page.events] == list(range(1, page.tail + 1))
        assert [e.body for e in page.events if e.type == "output"] == [f"line {n}\n".encode() for n in range(1, 101)]
        accepted = [e.data["id"] for e in page.events if e.type == "message.accepted"]
        assert accepted == [f"m{n}" for n in range(1, 101, 5)]
        assert sum(e.type == "sandbox.placed" for e in page.events) == 1

    async def test_nothing_is_paid_or_run_twice(self, data_dir: Path, short_dir: Path) -> None:
        """The same of model calls and intents."""
        dice = random.Random(12)
        proxy = CuttingProxy(short_dir / "p.sock", short_dir / "redis" / "redis.sock", lambda: dice.random() < 0.33)
        async with proxy.running():
            store = store_at(proxy.url, patience_s=30.0)
            lease = await store.running()
            for n in range(20):
                await answered(store, lease, n)
                assert isinstance(await store.calls.begin(lease, 1, asked(n)), Replay)
                left = await store.calls.begin(lease, 1, asked(100 + n))
                assert isinstance(left, Reserved)
                if n % 2:
                    await store.calls.cut(lease, left.call, USED, "why")
                assert (await intended(store, lease, n, "r1")).go
                assert not (await intended(store, lease, n, "r2")).go
                await store.intents.settle("exe_a", f"k{n}", Decision.RETRY, result="", by="eva")
                assert (await intended(store, lease, n, "r2")).go
                intent = await store.intents.finish(lease, key=f"k{n}", run="r2", ok=True, result="")
                assert intent.state is IntentState.DONE
            lease = await store.adopted()
            assert await store.calls.recover(lease) == 10
            spend = (await store.executions.get("exe_a")).spend
            every = ("usage", "model.cut", "intent.recorded", "intent.in_doubt", "intent.settled", "intent.done")
            told = Counter(event.type for event in await store.told(*every))
            await store.server.aclose()
        assert proxy.cuts > 50
        assert spend == Spend(micros=30 * 7 + 10 * 5, input_tokens=40, output_tokens=60, calls=40, replays=20)
        twice = {"usage": 40, "intent.recorded": 40}
        assert told == Counter(dict.fromkeys(every, 20) | twice)


USED = ModelUsage(1, 2, cost_micros=7)


def asked(n: int) -> Asked:
    return Asked("digest", f"m{n}", ModelUsage(5, 5, cost_micros=9), ModelUsage(1, 0, cost_micros=5))


async def answered(store: Store, lease: Lease, n: int) -> None:
    begun = await store.calls.begin(lease, 1, asked(n))
    assert isinstance(begun, Reserved)
    await store.calls.finish(lease, begun.call, Answer(200, {}, f"answer {n}".encode(), False), USED, {})
    await store.calls.delivered(lease, 1, begun.call)


async def intended(store: Store, lease: Lease, n: int, run: str) -> Begun:
    return await store.intents.begin(
        lease, attempt=1, key=f"k{n}", run=run, kind="bash", effect=Effect.ONCE, summary="", digest="d"
    )


async def test_a_server_that_takes_no_connection_is_a_store_that_does_not_answer() -> None:
    """Its queue is full: connecting takes longer than anybody waits. An overloaded host looks like that."""
    with socket.socket() as full, contextlib.ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        server = Server(f"redis://127.0.0.1:{full.getsockname()[1]}", patience_s=0.3)
        with pytest.raises(LineLost):
            await server.block("BLPOP", "x", "5", block_s=5.0)
        with pytest.raises(StoreUnavailable):
            await server.ask("PING")
        await server.aclose()
