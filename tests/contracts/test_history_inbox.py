"""The contract of `History.send` and `History.inbox`: durable, in order, once per id."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.errors import BadInput, Conflict, KeyReused, NotFound
from orchestrator.events import Cursor
from orchestrator.lifecycle import ExecutionState, Trigger
from tests.contracts.redis_store import Store


class TestSend:
    async def test_each_id_once_however_often_it_is_sent(self, store: Store) -> None:
        await store.running()
        sends = [store.history.send("exe_a", f"m{n % 50}", f"text {n % 50}".encode()) for n in range(200)]
        receipts = await asyncio.gather(*sends)
        assert sum(not receipt.repeated for receipt in receipts) == 50
        messages = await store.history.inbox("exe_a", 0, limit=1000)
        assert [m.n for m in messages] == list(range(1, 51))
        assert {m.id: m.body for m in messages} == {f"m{n}": f"text {n}".encode() for n in range(50)}
        accepted = [e for e in (await store.history.read("exe_a", Cursor())).events if e.type == "message.accepted"]
        assert [(e.data["n"], e.data["id"], e.data["text"]) for e in accepted] == [
            (m.n, m.id, m.body.decode()) for m in messages
        ]
        assert {(r.n, r.seq) for r in receipts} == {(e.data["n"], e.seq) for e in accepted}

    async def test_the_same_id_with_another_body(self, store: Store) -> None:
        await store.submitted()
        await store.history.send("exe_a", "m1", b"one")
        with pytest.raises(KeyReused):
            await store.history.send("exe_a", "m1", b"two")

    async def test_bytes_that_are_not_text(self, store: Store) -> None:
        await store.submitted()
        await store.history.send("exe_a", "m1", b"\xff\x00", mode="follow_up")
        (message,) = await store.history.inbox("exe_a", 0)
        assert (message.body, message.mode) == (b"\xff\x00", "follow_up")
        assert (await store.history.read("exe_a", Cursor(1, 1))).events[0].data["data_b64"] == "/wA="

    async def test_to_one_that_ended(self, store: Store) -> None:
        lease = await store.running()
        await store.history.send("exe_a", "m1", b"one")
        await store.finish(lease, own=3)
        with pytest.raises(Conflict):
            await store.history.send("exe_a", "m2", b"two")
        assert (await store.history.send("exe_a", "m1", b"one")).repeated  # what was accepted stays so

    async def test_bad_ids(self, store: Store) -> None:
        await store.submitted()
        for message_id in ("", "x" * 129):
            with pytest.raises(BadInput):
                await store.history.send("exe_a", message_id, b"")
        with pytest.raises(NotFound):
            await store.history.send("exe_none", "m1", b"")

    async def test_the_owner_is_woken(self, store: Store) -> None:
        await store.running()
        waiting = asyncio.create_task(store.executions.wait("w1", shared=False, timeout_s=30))
        await store.history.send("exe_a", "m1", b"one")
        assert await waiting == ("exe_a",)

    async def test_more_than_a_bell_holds_means_all(self, store: Store) -> None:
        await store.running()
        for n in range(70):
            await store.history.send("exe_a", f"m{n}", b"")
        rung = await store.executions.wait("w1", shared=False, timeout_s=30)
        assert "*" in rung

    async def test_a_sleeping_one_is_queued(self, store: Store) -> None:
        lease = await store.running()
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0)
        waiting = asyncio.create_task(store.executions.wait("w2", shared=True, timeout_s=30))
        await store.executions.claim("w2", "h1", lease_s=15)  # so that its host is known
        await store.history.send("exe_a", "m1", b"wake up")
        assert await store.state("exe_a") is ExecutionState.QUEUED
        claim = await store.claimed("w2")
        assert (claim.execution.id, claim.execution.inbox_tail) == ("exe_a", 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    async def test_mail_that_came_before_the_cut_wakes_it_again(self, store: Store) -> None:
        lease = await store.running()
        await store.history.send("exe_a", "m1", b"seen")
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.history.send("exe_a", "m2", b"not seen")
        done = await store.move(lease, Trigger.CUT, own=4, seen=1)
        assert done.state is ExecutionState.QUEUED
        events = (await store.history.read("exe_a", Cursor())).events
        assert [e.data["to"] for e in events if e.type == "execution.state"][-2:] == ["HIBERNATED", "QUEUED"]

    async def test_mail_that_was_seen_lets_it_sleep(self, store: Store) -> None:
        lease = await store.running()
        await store.history.send("exe_a", "m1", b"seen")
        await store.move(lease, Trigger.HIBERNATE, own=3)
        done = await store.move(lease, Trigger.CUT, own=4, seen=1)
        assert done.state is ExecutionState.HIBERNATED


class TestInbox:
    async def test_pages(self, store: Store) -> None:
        await store.submitted()
        for n in range(1, 11):
            await store.history.send("exe_a", f"m{n}", b"x" * 100)
        assert [m.n for m in await store.history.inbox("exe_a", 3, limit=4)] == [4, 5, 6, 7]
        assert [m.n for m in await store.history.inbox("exe_a", 0, max_bytes=250)] == [1, 2]
        assert [m.n for m in await store.history.inbox("exe_a", 9, max_bytes=1)] == [10]
        assert await store.history.inbox("exe_a", 10) == []
