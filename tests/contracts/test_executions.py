"""The contract of `orchestrator.executions.Executions`: records, queue and leases."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.errors import Fenced, KeyReused, NameTaken, NotFound
from orchestrator.execution import Spec
from orchestrator.executions import Claim, Nothing
from orchestrator.lifecycle import ExecutionState
from tests.contracts.redis_store import Store


class TestSubmit:
    async def test_two_hundred_at_once_with_one_key_are_one(self, store: Store) -> None:
        made = await asyncio.gather(
            *(
                store.executions.submit(Spec(task="x"), execution_id=f"exe_{n}", idempotency_key="key", body_digest="d")
                for n in range(200)
            )
        )
        assert len({m.execution.id for m in made}) == 1
        assert sum(m.created for m in made) == 1

    async def test_a_key_with_another_body_is_refused(self, store: Store) -> None:
        await store.executions.submit(Spec(), execution_id="exe_a", idempotency_key="key", body_digest="1")
        with pytest.raises(KeyReused) as refused:
            await store.executions.submit(Spec(), execution_id="exe_b", idempotency_key="key", body_digest="2")
        assert refused.value.data["id"] == "exe_a"

    async def test_a_lost_reply_is_answered_by_asking_again(self, store: Store) -> None:
        first = await store.executions.submit(Spec(task="x"), execution_id="exe_a")
        again = await store.executions.submit(Spec(task="x"), execution_id="exe_a")
        assert again == first
        assert (await store.history.tail("exe_a")).tail == 1

    async def test_a_name_is_taken_until_its_holder_has_ended(self, store: Store) -> None:
        lease = await store.running(name="n")
        with pytest.raises(NameTaken) as refused:
            await store.submitted("exe_b", name="n")
        assert refused.value.data["id"] == "exe_a"
        await store.finish(lease, own=3)
        await store.submitted("exe_b", name="n")

    async def test_get(self, store: Store) -> None:
        spec = Spec(task="ü", command=("a", "b"), env={"K": "v"}, labels={"l": "1"}, name="n")
        await store.executions.submit(spec, execution_id="exe_a")
        execution = await store.executions.get("exe_a")
        assert (execution.spec, execution.state, execution.tail) == (spec, ExecutionState.QUEUED, 1)
        with pytest.raises(NotFound):
            await store.executions.get("exe_none")


class TestClaim:
    async def test_eight_claimers_never_share(self, store: Store) -> None:
        await asyncio.gather(*(store.submitted(f"exe_{n:03}") for n in range(300)))
        got: list[str] = []

        async def claim_all(owner: str) -> None:
            while isinstance(claim := await store.executions.claim(owner, "h1", lease_s=600), Claim):
                assert claim.execution.owner == owner
                got.append(claim.execution.id)

        await asyncio.gather(*(claim_all(f"w{n}") for n in range(8)))
        assert sorted(got) == [f"exe_{n:03}" for n in range(300)]

    async def test_a_lapsed_lease_is_the_next_epoch(self, store: Store) -> None:
        first = await store.running()
        assert isinstance(await store.executions.claim("w2", "h1", lease_s=15), Nothing)
        await store.pass_time(15.1)
        claim = await store.claimed("w2")
        assert (claim.lease.epoch, claim.execution.state) == (first.epoch + 1, ExecutionState.RUNNING)
        with pytest.raises(Fenced):
            await store.executions.renew(first)
        await store.executions.renew(claim.lease)

    async def test_renewing_keeps_it(self, store: Store) -> None:
        lease = await store.running()
        for _ in range(4):
            await store.pass_time(10)
            await store.executions.renew(lease)
        assert isinstance(await store.executions.claim("w2", "h1", lease_s=15), Nothing)

    async def test_a_placed_one_is_claimed_on_its_host_only(self, store: Store) -> None:
        lease = await store.running()
        await store.executions.release(lease)
        assert isinstance(await store.executions.claim("w2", "h2", lease_s=15), Nothing)
        assert (await store.claimed("w2", "h1")).lease.epoch == lease.epoch + 1

    async def test_the_bell_rings(self, store: Store) -> None:
        waiting = asyncio.create_task(store.executions.wait("w1", shared=True, timeout_s=30))
        await store.submitted()
        assert await waiting == ()
        lease = (await store.claimed()).lease
        await store.history.send(lease.execution_id, "m1", b"hello")
        assert await store.executions.wait("w1", shared=True, timeout_s=30) == ("exe_a",)

    async def test_a_bell_that_rang_into_a_cancelled_wait_is_not_lost(self, store: Store) -> None:
        lease = await store.running()
        waiting = asyncio.create_task(store.executions.wait("w1", shared=False, timeout_s=30))
        await store.history.send(lease.execution_id, "m1", b"hello")  # the server has handed out the token by now
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert await store.executions.wait("w1", shared=False, timeout_s=30) in (("*",), ("exe_a",))
