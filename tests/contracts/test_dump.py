"""The contract of `Dump` and `Load`: what is read from one installation is the same in another; what was alive is not
continued twice; any of it may be done again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator.dump import Line, Loaded
from orchestrator.errors import BadInput, Closed, Conflict, Fenced, Gone, NotFound
from orchestrator.events import Cursor, Event
from orchestrator.execution import Budget, CancelWant, Limits, OutcomeKind, Reason, RetryPolicy, Spec
from orchestrator.executions import Filter, Nothing
from orchestrator.harnesses import Harness
from orchestrator.intents import Effect, IntentState
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.snapshots import Cut, Origin, Why
from orchestrator.stores.redis import (
    Keys,
    RedisDump,
    RedisExecutions,
    RedisHistory,
    RedisLoad,
    RedisStreams,
    RedisTokens,
    Server,
    prepare,
)
from orchestrator.streams import START, Fork, NewStream, Producer, StreamName
from orchestrator.tokens import Scope, Token
from tests.contracts.redis_store import Store, lines, snapshot_of
from tests.contracts.test_calls import answered, keyed
from tests.contracts.test_calls import begun as call_begun

T = "default"
TAKEN = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
RESUMES = Harness("h", ("true",), resumes=True)


@pytest.fixture
async def other(redis_url: str, installation: str) -> AsyncIterator[Store]:
    """An empty installation beside the first."""
    server, keys = Server(redis_url), Keys(f"{installation}-b")
    history = RedisHistory(server, keys)
    try:
        yield Store(server, keys, RedisExecutions(server, keys), history)
    finally:
        await history.aclose()
        await server.aclose()


async def taken(store: Store) -> list[Line]:
    return [line async for line in RedisDump(store.server, store.keys).lines()]


async def loaded(store: Store, lines: list[Line], *, files: frozenset[str] = frozenset(), backup: str = "b1") -> Loaded:
    load = RedisLoad(store.server, store.keys)
    await load.begin(backup, host_was="h1", host="h2", quiet_s=0.1)
    for line in lines:
        await load.add(line, files=files)
    return await load.finish(taken_at=TAKEN)


async def moved(store: Store, other: Store, *files: str) -> Loaded:
    return await loaded(other, await taken(store), files=frozenset(files))


async def all_of(store: Store, execution_id: str) -> list[Event]:
    told: list[Event] = []
    cursor = Cursor((await store.executions.get(execution_id)).generation, 0)
    while page := await store.history.read(execution_id, cursor):
        told += page.events
        cursor = page.next
        if not page.events:
            return told
    return told


async def seen(store: Store) -> dict[str, Any]:
    """Everything of what has ended that can be read through the ports."""
    records = {each.id: each async for each in store.executions.everything() if each.ended}
    return {
        "records": records,
        "histories": {id: await all_of(store, id) for id in records},
        "tails": {id: await store.history.tail(id) for id in records},
        "inboxes": {id: await store.history.inbox(id, 0) for id in records},
        "intents": {id: await store.intents.list(id) for id in records},
        "snapshots": {each.id: each async for each in store.snapshots.everything()},
        "families": {id: await store.snapshots.family(id) for id in records},
        "listed": [each.id for each in (await store.executions.list(Filter(), tenant=T)).executions],
        "count": await store.executions.count(),
        "tally": await store.executions.tally(datetime(2020, 1, 1, tzinfo=UTC), by="harness"),
    }


async def ended_with_everything(store: Store) -> None:
    """Two runs, one forked from the other, of which everything is there; and one with a name, rewound."""
    lease = await store.running("exe_a", name="one", labels={"team": "é"}, tenant=T)
    await store.history.append(lease, attempt=1, spooled=lines(1, 300, text="a line \xff"))
    await store.history.send("exe_a", "m1", b"\xff\x00hello")
    await store.intents.begin(
        lease, attempt=1, key="k\xe9", run="r", kind="bash", effect=Effect.ONCE, summary="s", digest="d"
    )
    await store.intents.finish(lease, key="k\xe9", run="r", ok=True, result="it is done")
    await answered(store, lease)
    tail = (await store.executions.get("exe_a")).tail
    await store.cut(lease, "snp_1", own=3, cut=Cut(1, tail, 300, 0, 1), name="named", archived=True, host="h1")
    await store.finish(lease, own=4)
    await store.executions.submit(
        Spec(name="one", origin=Origin("exe_a", "snp_1", tail, rewind=True), labels={"team": "b"}), execution_id="exe_b"
    )
    claim = await store.claimed()
    await store.place(claim.lease, own=1)
    await store.move(claim.lease, Trigger.HARNESS_STARTED, own=2, started=True)
    await store.cut(claim.lease, "snp_2", own=3, parent="snp_1", archived=True)
    await store.finish(claim.lease, own=4)


class TestTheSame:
    async def test_everything_that_has_ended_reads_as_before(self, store: Store, other: Store) -> None:
        await ended_with_everything(store)
        before = await seen(store)
        assert len(before["histories"]["exe_a"]) > 300
        done = await moved(store, other)
        assert done == Loaded(2)
        after = await seen(other)
        for what in before:
            if what == "snapshots" or what == "records":
                assert after[what] == {id: replace(each, host="h2") for id, each in before[what].items()}
            else:
                assert after[what] == before[what], what
        assert (await other.executions.resolve("one", tenant=T)).id == "exe_b"
        assert (await other.executions.resolve("one", tenant=T)).generation == 2
        assert [each.what for each in await other.executions.repair()] == []

    async def test_an_acknowledged_key_stays_known(self, store: Store, other: Store) -> None:
        first = await store.executions.submit(
            (await store.executions.get(await store.submitted("exe_x"))).spec,
            execution_id="exe_a",
            idempotency_key="k",
            body_digest="1",
        )
        await moved(store, other)
        again = await other.executions.submit(
            first.execution.spec, execution_id="exe_new", idempotency_key="k", body_digest="1"
        )
        assert (again.created, again.execution.id) == (False, "exe_a")

    async def test_a_message_sent_again_is_the_same_message(self, store: Store, other: Store) -> None:
        await store.submitted()
        sent = await store.history.send("exe_a", "m1", b"hello")
        await moved(store, other)
        again = await other.history.send("exe_a", "m1", b"hello")
        assert (again.n, again.repeated) == (sent.n, True)
        assert (await other.history.send("exe_a", "m2", b"next")).n == sent.n + 1

    async def test_a_history_that_goes_into_the_archive_while_it_is_read_is_there(
        self, store: Store, other: Store
    ) -> None:
        lease = await store.running()
        await store.finish(lease, own=3)
        dump: list[Line] = []
        async for line in RedisDump(store.server, store.keys).lines():
            dump.append(line)
            if line["of"] == "execution":
                await store.history.hand_over("exe_a")
        await loaded(other, dump)
        assert await other.server.ask("HGET", other.keys.record("exe_a"), "history_archived") == b"1"
        assert (await other.history.tail("exe_a")).closed

    async def test_tokens(self, store: Store, other: Store) -> None:
        token = Token("t1", "d" * 64, frozenset({Scope.READ}), "acme", TAKEN, "a note")
        await RedisTokens(store.server, store.keys).put(token)
        await moved(store, other)
        assert await RedisTokens(other.server, other.keys).find("d" * 64) == token

    async def test_streams_and_their_forks(self, store: Store, other: Store) -> None:
        streams, theirs = RedisStreams(store.server, store.keys), RedisStreams(other.server, other.keys)

        async def whole_of(name: StreamName) -> bytes:
            return b"".join((await theirs.read(name, START)).bodies)

        try:
            open_, closed, fork = (StreamName(T, name) for name in ("open", "closed", "fork"))
            await streams.create(closed, NewStream("text/plain"))
            await streams.append(closed, b"all", content_type="text/plain", close=True)
            await streams.create(open_, NewStream("text/plain"))
            for n in range(50):
                written = await streams.append(
                    open_, b"%d," % n, content_type="text/plain", producer=Producer("p", 0, n)
                )
            await streams.create(fork, NewStream("text/plain", fork=Fork(open_, written.offset)))
            await streams.append(fork, b"forked", content_type="text/plain")
            at = (await streams.read(closed, START)).next
            await moved(store, other)
            whole = b"".join(b"%d," % n for n in range(50))
            assert await whole_of(open_) == whole
            assert await whole_of(fork) == whole + b"forked"
            assert (await theirs.read(closed, at)).bodies == ()
            # Its last append came through; the next one counts on.
            repeated = await theirs.append(open_, b"49,", content_type="text/plain", producer=Producer("p", 0, 49))
            assert repeated.repeated
            await theirs.append(open_, b"50,", content_type="text/plain", producer=Producer("p", 0, 50))
            assert await whole_of(open_) == whole + b"50,"
            with pytest.raises(Gone):  # of what came after the backup nobody here knows
                await theirs.read(open_, written.offset)
            await theirs.delete(open_)
            assert await whole_of(fork) == whole + b"forked"
        finally:
            await streams.aclose()
            await theirs.aclose()


class TestWhatWasAlive:
    async def test_it_goes_on_from_its_last_snapshot(self, store: Store, other: Store) -> None:
        lease = await store.running(harness="h", declared=RESUMES, limits=Limits(deadline_s=3600))
        await store.cut(lease, "snp_1", own=3)
        await store.history.append(lease, attempt=1, spooled=lines(1, 10))
        before = await store.executions.get("exe_a")
        done = await moved(store, other, "snp_1")
        assert done == Loaded(0, resumes=("exe_a",))
        after = await other.executions.get("exe_a")
        assert (after.state, after.generation, after.sandbox_id) == (ExecutionState.QUEUED, 2, None)
        assert (after.owner, after.host, after.snapshot_id, after.failures) == (None, "h2", "snp_1", 0)
        assert after.epoch > before.epoch + 1000
        assert after.deadline_at is not None and before.deadline_at is not None
        assert abs((after.deadline_at - before.deadline_at).total_seconds()) < 1
        told = await other.told("execution.restored", "sandbox.lost")
        assert [event.type for event in told] == ["execution.restored", "sandbox.lost"]
        assert told[0].seq == before.tail + 1
        with pytest.raises(Gone):  # a place in what nobody has any more
            await other.history.read("exe_a", Cursor(1, before.tail))

    async def test_its_old_owner_writes_no_more(self, store: Store, other: Store) -> None:
        lease = await store.running(harness="h", declared=RESUMES)
        await store.cut(lease, "snp_1", own=3)
        dump = await taken(store)
        for _ in range(3):  # adopted again and again since
            lease = await store.adopted()
        await loaded(other, dump, files=frozenset({"snp_1"}))
        with pytest.raises(Fenced):
            await other.history.append(lease, attempt=1, spooled=lines(1, 3))
        with pytest.raises(Fenced):
            await other.executions.renew(lease)
        await other.pass_time(60)
        assert (await other.claimed("w9", "h2")).lease.epoch > lease.epoch

    @pytest.mark.parametrize("case", ["no snapshot", "does not resume", "policy", "its files are not there"])
    async def test_it_is_lost_by_name(self, store: Store, other: Store, case: str) -> None:
        harness = replace(RESUMES, resumes=case != "does not resume")
        retry = RetryPolicy(on_lost="end" if case == "policy" else "auto")
        lease = await store.running(harness="h", declared=harness, retry=retry)
        if case != "no snapshot":
            await store.cut(lease, "snp_1", own=3)
        done = await moved(store, other, *(() if case == "its files are not there" else ("snp_1",)))
        assert done == Loaded(0, lost=("exe_a",))
        after = await other.executions.get("exe_a")
        assert after.outcome is not None
        assert (after.outcome.kind, after.outcome.reason) == (OutcomeKind.LOST, Reason.SANDBOX_LOST)
        assert "restored from a backup of 2026-11-21 12:00:00 UTC, when it was RUNNING" in after.outcome.message
        assert (await other.history.tail("exe_a")).closed
        with pytest.raises((Closed, Fenced)):
            await other.history.append(lease, attempt=1, spooled=lines(1, 3))

    async def test_whoever_was_to_be_cancelled_is(self, store: Store, other: Store) -> None:
        await store.running()
        await store.executions.want("exe_a", CancelWant("c", 5.0, "enough"))
        await moved(store, other)
        after = await other.executions.get("exe_a")
        assert after.outcome is not None
        assert (after.outcome.kind, after.outcome.message) == (OutcomeKind.CANCELLED, "enough")

    async def test_what_slept_sleeps_and_wakes_from_its_snapshot(self, store: Store, other: Store) -> None:
        lease = await store.running(harness="h", declared=RESUMES)
        await store.move(lease, Trigger.HIBERNATE, own=3)
        snapshot = snapshot_of(lease, "snp_1", why=Why.HIBERNATE)
        await store.move(lease, Trigger.CUT, own=4, snapshot=snapshot, seen=0, unowned=True)
        assert await moved(store, other, "snp_1") == Loaded(0, waits=("exe_a",))
        assert await other.state("exe_a") is ExecutionState.HIBERNATED
        assert isinstance(await other.executions.claim("w", "h2", lease_s=5), Nothing)
        await other.history.send("exe_a", "m", b"wake")
        assert (await other.claimed("w", "h2")).execution.snapshot_id == "snp_1"

    async def test_a_call_under_way_is_settled_as_one_that_broke_off(self, store: Store, other: Store) -> None:
        lease = await store.running(harness="h", declared=RESUMES, limits=Limits(budget=Budget(micros=1000)))
        await answered(store, lease)
        await store.cut(lease, "snp_1", own=3)
        await call_begun(store, lease, keyed("second"))
        await moved(store, other, "snp_1")
        spend = (await other.executions.get("exe_a")).spend
        assert (spend.micros, spend.reserved_micros, spend.reserved_tokens, spend.calls) == (450, 0, 0, 2)

    async def test_an_intent_that_ended_after_the_record_was_read_is_in_doubt(self, store: Store, other: Store) -> None:
        lease = await store.running(harness="h", declared=RESUMES)
        for key in ("early", "late"):
            await store.intents.begin(
                lease, attempt=1, key=key, run="r", kind="bash", effect=Effect.ONCE, summary="s", digest=key
            )
        await store.intents.finish(lease, key="early", run="r", ok=True, result="1")
        await store.cut(lease, "snp_1", own=3)
        dump: list[Line] = []
        async for line in RedisDump(store.server, store.keys).lines():
            dump.append(line)
            if line["of"] == "execution":  # a busy writer: what comes now is after this execution's moment
                await store.intents.finish(lease, key="late", run="r", ok=True, result="2")
                await store.history.append(lease, attempt=1, spooled=lines(1, 5))
                await store.history.send("exe_a", "m", b"later")
        await loaded(other, dump, files=frozenset({"snp_1"}))
        states = {intent.key: (intent.state, intent.result) for intent in await other.intents.list("exe_a")}
        assert states == {"early": (IntentState.DONE, "1"), "late": (IntentState.IN_DOUBT, "")}
        await other.executions.want("exe_a", CancelWant("c1", 0))
        assert [told.in_doubt for told in await other.executions.tally(datetime.now(UTC) - timedelta(minutes=1))] == [1]
        assert await other.told("output", "message.accepted") == []
        assert await other.history.inbox("exe_a", 0) == []


class TestNothingTwice:
    async def test_refused_where_something_is(self, store: Store, other: Store) -> None:
        await store.submitted()
        await other.submitted("exe_b")
        with pytest.raises(Conflict, match="not empty: it has 1 executions, exe_b"):
            await moved(store, other)

    async def test_broken_off_anywhere_it_goes_on(self, store: Store, other: Store) -> None:
        await ended_with_everything(store)
        lease = await store.running("exe_c", harness="h", declared=RESUMES)
        await store.cut(lease, "snp_9", own=3)
        dump = await taken(store)
        files = frozenset({"snp_9"})
        for upto in range(0, len(dump), 3):
            load = RedisLoad(other.server, other.keys)
            await load.begin("b1", host_was="h1", host="h2", quiet_s=0.0)
            for line in dump[:upto]:
                await load.add(line, files=files)
            with pytest.raises(NotFound):
                await other.executions.get("exe_c")
        assert isinstance(await other.executions.claim("w", "h2", lease_s=5), Nothing)
        with pytest.raises(BadInput, match="being restored"):
            await prepare(other.server, other.keys)
        with pytest.raises(Conflict, match="another backup"):
            await loaded(other, dump, backup="b2")
        await loaded(other, dump, files=files)
        once = await seen(other)
        await other.server.ask("HSET", other.keys.meta, "restoring", "b1")  # it died just before the end
        assert await loaded(other, dump, files=files) == Loaded(0)
        assert await seen(other) == once
        await prepare(other.server, other.keys)
        assert once["histories"]["exe_a"] == await all_of(store, "exe_a")

    async def test_refused_while_somebody_works_on_it(self, store: Store, other: Store) -> None:
        await store.submitted()
        await other.executions.heartbeat("h2", "w", {})

        async def works() -> None:
            while True:
                await other.executions.claim("w", "h2", lease_s=5)

        working = asyncio.create_task(works())
        try:
            with pytest.raises(Conflict, match="a worker or an api works on this store"):
                await moved(store, other)
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
        assert (await moved(store, other)).waits == ("exe_a",)
