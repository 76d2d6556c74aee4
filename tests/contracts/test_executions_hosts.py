"""The contract of placement, hosts, quota and repair."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.errors import Conflict, Fenced, TooMany
from orchestrator.events import Cursor
from orchestrator.execution import CancelWant, Limits, Outcome, OutcomeKind, Reason, RetryPolicy, Spec
from orchestrator.executions import COUNTERS, EGRESS_RECEIVED, EGRESS_SENT, Claim, Nothing
from orchestrator.harnesses import Harness
from orchestrator.history import Change
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.snapshots import Origin
from orchestrator.stores.redis import RedisExecutions
from tests.contracts.redis_store import Store, lines, snapshot_of

RESUMES = Harness("agent", ("agent",), resumes=True)
CANCELLED = Outcome(OutcomeKind.CANCELLED, Reason.CANCELLED)


class TestPlacement:
    async def test_what_has_a_slot_waits_for_its_host(self, store: Store) -> None:
        lease = await store.running()
        await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1)
        assert isinstance(await store.executions.claim("w2", "h2", lease_s=15), Nothing)
        claim = await store.claimed("w1", "h1")
        assert (claim.execution.attempt, claim.execution.failures, claim.execution.host) == (1, 1, "h1")

    async def test_a_retry_waits_for_its_moment(self, store: Store) -> None:
        lease = await store.running()
        wall_ms = int(await store.server.ask("HGET", store.keys.meta, "last"))
        await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1, not_before_ms=wall_ms + 20_000)
        waiting = await store.executions.get("exe_a")
        assert waiting.not_before_at is not None
        assert 0 < (waiting.not_before_at - waiting.created_at).total_seconds() < 60
        nothing = await store.executions.claim("w1", "h1", lease_s=40)
        assert isinstance(nothing, Nothing)
        assert nothing.wait_s == 5.0  # a claim runs at least every 5 s
        await store.pass_time(21)
        assert (await store.claimed()).execution.not_before_at is None

    async def test_nothing_says_when_to_ask_again(self, store: Store) -> None:
        await store.running()
        nothing = await store.executions.claim("w2", "h1", lease_s=8)
        assert isinstance(nothing, Nothing)
        assert nothing.wait_s == 2.0  # a quarter of the lease at most
        await store.pass_time(13.9)
        nothing = await store.executions.claim("w2", "h1", lease_s=8)
        assert isinstance(nothing, Nothing)
        assert 0.05 <= nothing.wait_s <= 1.1

    async def test_a_release_rings_on_its_host(self, store: Store) -> None:
        lease = await store.running()
        await store.executions.claim("w2", "h1", lease_s=15)  # tells w2's host
        waiting = asyncio.create_task(store.executions.wait("w2", shared=True, timeout_s=30))
        await store.executions.release(lease)
        assert await waiting == ()
        claim = await store.claimed("w2", "h1")
        events = (await store.history.read("exe_a", Cursor(1, claim.execution.tail - 1))).events
        assert [(e.type, e.data["owner"], e.data["epoch"]) for e in events] == [
            ("execution.adopted", "w2", claim.lease.epoch)
        ]
        with pytest.raises(Fenced):
            await store.executions.release(lease)

    async def test_two_due_ring_two_workers(self, store: Store) -> None:
        await store.submitted("exe_1")
        await store.submitted("exe_2")
        while await store.server.ask("LPOP", store.keys.bell()):
            pass  # the tokens went to somebody who died
        await store.claimed("w1")
        assert await store.executions.wait("w2", shared=True, timeout_s=30) == ()
        assert (await store.claimed("w2")).execution.id == "exe_2"


class TestHosts:
    async def test_what_workers_count_is_added_up(self, store: Store) -> None:
        assert await store.executions.counters() == dict.fromkeys(COUNTERS, 0)
        await store.executions.heartbeat("h1", "w1", {}, counted={EGRESS_SENT: 3, EGRESS_RECEIVED: 1 << 40})
        await store.executions.heartbeat("h2", "w2", {}, counted={EGRESS_SENT: 4, EGRESS_RECEIVED: 0})
        await store.executions.heartbeat("h1", "w1", {})
        assert await store.executions.counters() == {EGRESS_SENT: 7, EGRESS_RECEIVED: 1 << 40}

    async def test_heartbeats(self, store: Store) -> None:
        assert await store.executions.hosts() == []
        await store.executions.heartbeat("h1", "w1", {"cpus": "2"})
        await store.executions.heartbeat("h1", "w2", {})
        await store.executions.heartbeat("h2", "w3", {"cpus": "4"})
        await store.pass_time(30)
        await store.executions.heartbeat("h2", "w3", {"cpus": "8"})
        one, two = await store.executions.hosts()
        assert (one.name, one.workers, one.facts) == ("h1", ("w1", "w2"), {})
        assert (two.name, two.workers, two.facts) == ("h2", ("w3",), {"cpus": "8"})
        assert 30 <= one.silent_s < 40
        assert two.silent_s < 10
        await store.pass_time(31)
        assert (await store.executions.hosts())[0].workers == ()

    async def test_what_never_ran_is_tried_elsewhere(self, store: Store) -> None:
        await store.submitted()
        lease = (await store.claimed()).lease
        await store.place(lease, own=1)
        assert await store.executions.evict("h1") == ["exe_a"]
        after = await store.executions.get("exe_a")
        assert (after.state, after.host, after.failures) == (ExecutionState.QUEUED, None, 1)
        with pytest.raises(Fenced):
            await store.history.append(lease, attempt=1, spooled=lines(1, 1))
        await store.pass_time(60)
        assert (await store.claimed("w2", "h2")).execution.id == "exe_a"

    async def test_what_ran_is_lost_with_its_files(self, store: Store) -> None:
        lease = await store.running()
        assert await store.executions.evict("h1") == ["exe_a"]
        after = await store.executions.get("exe_a")
        assert after.outcome is not None
        assert (after.outcome.kind, after.outcome.reason) == (OutcomeKind.LOST, Reason.HOST_LOST)
        with pytest.raises(Fenced):
            await store.executions.renew(lease)
        types = [e.type for e in (await store.history.read("exe_a", Cursor())).events]
        assert types[-3:] == ["sandbox.lost", "execution.state", "execution.finished"]
        assert await store.executions.evict("h1") == []

    async def test_what_may_run_twice_is_tried_elsewhere(self, store: Store) -> None:
        await store.running(retry=RetryPolicy(on_lost="retry"))
        await store.executions.evict("h1")
        assert await store.state("exe_a") is ExecutionState.QUEUED

    async def test_what_sleeps_or_waits_there_is_set_free(self, store: Store) -> None:
        lease = await store.running()
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0)
        assert await store.executions.evict("h1") == ["exe_a"]
        after = await store.executions.get("exe_a")
        assert (after.state, after.host) == (ExecutionState.HIBERNATED, None)
        await store.history.send("exe_a", "m1", b"")
        assert (await store.claimed("w2", "h2")).execution.id == "exe_a"

    async def test_others_are_left_alone(self, store: Store) -> None:
        await store.running()
        await store.submitted("exe_b")
        assert await store.executions.evict("h2") == []
        assert await store.state("exe_a") is ExecutionState.RUNNING

    async def test_with_an_archived_snapshot_it_goes_on_elsewhere(self, store: Store) -> None:
        lease = await store.running(declared=RESUMES)
        await store.cut(lease, "snp_1", own=3)
        await store.cut(lease, "snp_2", own=4)
        await store.cut(lease, "snp_3", own=5)
        await store.snapshots.archived("snp_1")
        await store.snapshots.archived("snp_2")
        assert await store.executions.evict("h1") == ["exe_a"]
        after = await store.executions.get("exe_a")
        assert (after.state, after.host, after.snapshot_id) == (ExecutionState.QUEUED, None, "snp_2")
        (lost,) = await store.told("sandbox.lost")
        assert lost.data["snapshot"] == "snp_2"
        await store.pass_time(60)
        assert (await store.claimed("w2", "h2")).execution.id == "exe_a"

    async def test_without_one_it_is_lost(self, store: Store) -> None:
        lease = await store.running(declared=RESUMES)
        await store.cut(lease, "snp_1", own=3)
        await store.executions.evict("h1")
        after = await store.executions.get("exe_a")
        assert after.outcome is not None
        assert after.outcome.reason is Reason.HOST_LOST

    async def test_what_sleeps_on_a_snapshot_that_is_nowhere_else_waits_for_it(self, store: Store) -> None:
        lease = await store.running(declared=RESUMES)
        await store.cut(lease, "snp_1", own=3)
        await store.snapshots.archived("snp_1")
        await store.move(lease, Trigger.HIBERNATE, own=4)
        await store.move(lease, Trigger.CUT, own=5, seen=0, snapshot=snapshot_of(lease, "snp_2"))
        assert await store.executions.evict("h1") == []
        assert (await store.executions.get("exe_a")).host == "h1"
        await store.history.send("exe_a", "m1", b"")  # woken: the older one must do
        assert await store.executions.evict("h1") == ["exe_a"]
        woken = (await store.claimed("w2", "h2")).execution
        assert (woken.id, woken.snapshot_id) == ("exe_a", "snp_1")

    async def test_what_sleeps_archived_is_set_free(self, store: Store) -> None:
        lease = await store.running(declared=RESUMES)
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0, snapshot=snapshot_of(lease, "snp_1"))
        await store.snapshots.archived("snp_1")
        assert await store.executions.evict("h1") == ["exe_a"]
        after = await store.executions.get("exe_a")
        assert (after.state, after.host, after.snapshot_id) == (ExecutionState.HIBERNATED, None, "snp_1")

    async def test_a_fork_waits_for_the_host_of_its_snapshot(self, store: Store) -> None:
        lease = await store.running(declared=RESUMES)
        await store.cut(lease, "snp_1", own=3)
        origin = Origin("exe_a", "snp_1", 4)
        deadline = Limits(deadline_s=100)
        await store.executions.submit(Spec(declared=RESUMES, origin=origin, limits=deadline), execution_id="exe_b")
        assert await store.executions.evict("h1") == ["exe_a"]
        assert (await store.executions.get("exe_b")).host == "h1"
        for _ in range(21):
            await store.pass_time(5)
        await store.executions.evict("h1")
        ended = await store.executions.get("exe_b")
        assert ended.outcome is not None
        assert ended.outcome.reason is Reason.DEADLINE

    async def test_a_fork_that_ran_goes_back_to_its_origin(self, store: Store) -> None:
        lease = await store.running(declared=RESUMES)
        await store.cut(lease, "snp_1", own=3)
        origin = Origin("exe_a", "snp_1", 4)
        await store.executions.submit(Spec(declared=RESUMES, origin=origin), execution_id="exe_b")
        fork = (await store.claimed()).lease
        await store.place(fork, own=1)
        await store.move(fork, Trigger.HARNESS_STARTED, own=2, started=True)
        await store.cut(fork, "snp_2", own=3)
        await store.snapshots.archived("snp_1")
        assert "exe_b" in await store.executions.evict("h1")
        assert (await store.executions.get("exe_b")).snapshot_id == "snp_1"
        with pytest.raises(Conflict):
            await store.snapshots.remove("snp_1")


class TestQuota:
    def limited(self, store: Store, max_running: int, max_parked: int | None = None) -> RedisExecutions:
        return RedisExecutions(store.server, store.keys, max_running=max_running, max_parked=max_parked)

    async def test_beyond_the_limit_they_wait_for_an_end(self, store: Store) -> None:
        executions = self.limited(store, max_running=2, max_parked=3)
        for n in range(5):
            await executions.submit(Spec(), execution_id=f"exe_{n}")
        with pytest.raises(TooMany):
            await executions.submit(Spec(), execution_id="exe_5")
        await executions.submit(Spec(tenant="other"), execution_id="exe_6")
        claims = []
        while isinstance(claim := await executions.claim("w1", "h1", lease_s=600), Claim):
            claims.append(claim)
        assert [claim.execution.id for claim in claims] == ["exe_0", "exe_1", "exe_6"]
        await store.history.append(
            claims[0].lease, attempt=0, own=1, change=Change(trigger=Trigger.CANCEL, outcome=CANCELLED)
        )
        assert (await store.claimed()).execution.id == "exe_2"
        await executions.want("exe_3", CancelWant("c", 0))  # one that waits ends without taking a place
        assert isinstance(await executions.claim("w1", "h1", lease_s=600), Nothing)
        await store.history.append(
            claims[1].lease, attempt=0, own=1, change=Change(trigger=Trigger.CANCEL, outcome=CANCELLED)
        )
        assert (await store.claimed()).execution.id == "exe_4"

    async def test_sleeping_ones_hold_no_place(self, store: Store) -> None:
        executions = self.limited(store, max_running=1)
        lease = await store.running("exe_1")
        await executions.submit(Spec(), execution_id="exe_2")
        assert isinstance(await executions.claim("w2", "h1", lease_s=15), Nothing)
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0)
        assert (await store.claimed("w2")).execution.id == "exe_2"

    async def test_a_raised_limit_is_noticed(self, store: Store) -> None:
        executions = self.limited(store, max_running=1)
        for n in range(4):
            await executions.submit(Spec(), execution_id=f"exe_{n}")
        done = await self.limited(store, max_running=3).repair()
        assert [(d.what, d.execution_id) for d in done] == [("quota", "exe_1"), ("quota", "exe_2")]


class TestRepair:
    async def test_a_sound_store_is_left_alone(self, store: Store) -> None:
        lease = await store.running("exe_1", name="n", labels={"a": "b"})
        await store.finish(lease, own=3)
        await store.running("exe_2", name="n")
        await store.submitted("exe_3")
        assert await store.executions.repair() == []

    async def test_every_index_can_be_built_again(self, store: Store) -> None:
        await store.submitted("exe_0", name="old")
        await store.executions.want("exe_0", CancelWant("c", 0))
        await store.running("exe_1", name="n", labels={"a": "b"})
        await store.submitted("exe_2")
        kept = ("}:record", "}:history", "}:inbox", "}:inbox:ids", "meta", "workers")
        before: dict[bytes, object] = {}

        async def indexes() -> dict[bytes, object]:
            found: dict[bytes, object] = {}
            for key in await store.server.ask("KEYS", f"{store.keys.prefix}*"):
                if key.decode().endswith(kept) or b"bell" in key:
                    continue
                kind = await store.server.ask("TYPE", key)
                command = ("HGETALL", key) if kind == b"hash" else ("ZRANGE", key, 0, -1, "WITHSCORES")
                told = await store.server.ask(*command)
                found[key] = dict(zip(told[::2], told[1::2], strict=True))
            return found

        before = await indexes()
        assert len(before) > 10
        await store.server.ask("DEL", *before)
        done = await store.executions.repair()
        assert await indexes() == before
        assert {d.execution_id for d in done} == {"exe_0", "exe_1", "exe_2"}
        assert {d.what for d in done} == {"due", "list", "name", "sandbox", "quota"}
        assert await store.executions.repair() == []

    async def test_what_points_to_nothing_is_taken_out(self, store: Store) -> None:
        await store.running("exe_1")
        for key in (
            store.keys.due(),
            store.keys.due("h9"),
            store.keys.index("all"),
            store.keys.index("state", "RUNNING"),
        ):
            await store.server.ask("ZADD", key, 1, "exe_gone")
        await store.server.ask("HSET", store.keys.names, "default\tn", "exe_gone")
        await store.server.ask("ZADD", store.keys.due(), 1, "exe_1")  # it belongs to its host's
        done = await store.executions.repair()
        assert sorted((d.what, d.execution_id) for d in done) == [("stale", "exe_1")] + [("stale", "exe_gone")] * 5
        assert await store.executions.repair() == []

    async def test_a_claim_corrects_what_it_meets(self, store: Store) -> None:
        lease = await store.running("exe_1")
        await store.server.ask("ZADD", store.keys.due(), 1, "exe_gone", 2, "exe_1")
        assert isinstance(await store.executions.claim("w2", "h2", lease_s=15), Nothing)
        assert await store.server.ask("ZCARD", store.keys.due()) == 0
        await store.executions.renew(lease)

    async def test_a_clock_that_jumps_expires_nothing(self, store: Store) -> None:
        await store.running()
        meta = store.keys.meta
        for jump_ms in (3_600_000, -3_600_000):
            last = int(await store.server.ask("HGET", meta, "last"))
            await store.server.ask("HSET", meta, "last", last - jump_ms)  # the server's clock jumped by that much
            assert isinstance(await store.executions.claim("w2", "h1", lease_s=15), Nothing)
        now = int(await store.server.ask("HGET", meta, "now"))
        assert abs(now - int(await store.server.ask("HGET", meta, "last"))) <= 5_500
