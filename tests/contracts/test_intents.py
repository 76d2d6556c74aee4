"""The contract of `Intents`: what is written before an act, who may go ahead, who decides when nobody knows."""

from __future__ import annotations

import unicodedata
from collections.abc import Awaitable, Callable

import pytest

from orchestrator.errors import BadInput, Conflict, Fenced, KeyReused, NotFound, StoreUnavailable, TooMany
from orchestrator.history import Lease
from orchestrator.intents import KEY_BYTES, RESULT_BYTES, SUMMARY_BYTES, Begun, Decision, Effect, Intent, IntentState
from orchestrator.lifecycle import Trigger
from orchestrator.stores.redis import Keys, RedisIntents, Server
from tests.contracts.redis_store import Store

S = IntentState
REPEATABLE = [Effect.NONE, Effect.IDEMPOTENT]
NOT_REPEATABLE = [Effect.ONCE, Effect.UNKNOWN]


async def begin(store: Store, lease: Lease, *, run: str = "r1", **call: object) -> Begun:
    made: dict[str, object] = {
        "attempt": 1,
        "key": "k",
        "kind": "bash",
        "effect": Effect.ONCE,
        "summary": "mail /bob",
        "digest": "d",
    } | call
    return await store.intents.begin(lease, run=run, **made)  # type: ignore[arg-type]


async def finish(store: Store, lease: Lease, *, run: str = "r1", ok: bool = True, result: str = "sent") -> Intent:
    return await store.intents.finish(lease, key="k", run=run, ok=ok, result=result)


async def doubtful(store: Store) -> Lease:
    """Begun by r1, and asked for by r2."""
    lease = await store.running()
    await begin(store, lease)
    assert not (await begin(store, lease, run="r2")).go
    return lease


async def types(store: Store) -> list[str]:
    every = ("intent.recorded", "intent.done", "intent.in_doubt", "intent.settled")
    return [e.type.removeprefix("intent.") for e in await store.told(*every)]


class TestBegin:
    async def test_it_is_written_with_its_event(self, store: Store) -> None:
        lease = await store.running()
        begun = await begin(store, lease, summary="mail ü\n\x00/bob")
        intent = await store.intents.get("exe_a", "k")
        assert begun == Begun(True, intent)
        assert (intent.key, intent.kind, intent.effect, intent.digest) == ("k", "bash", Effect.ONCE, "d")
        assert (intent.attempt, intent.run, intent.n, intent.state) == (1, "r1", 1, S.OPEN)
        assert (intent.summary, intent.result, intent.settled_by) == ("mail ü\n\x00/bob", "", "")
        assert intent.ended_at is None
        (event,) = await store.told("intent.recorded")
        assert (event.source, event.time) == ("platform", intent.begun_at)
        told = {"key": "k", "kind": "bash", "effect": "once", "summary": "mail ü\n\x00/bob", "run": "r1", "n": 1}
        assert event.data == told

    async def test_asked_twice_by_one_run_it_goes_once_more_and_is_one(self, store: Store) -> None:
        lease = await store.running()
        assert await begin(store, lease) == await begin(store, lease)
        assert await types(store) == ["recorded"]

    @pytest.mark.parametrize("ok", [True, False])
    async def test_what_was_done_is_not_done_again(self, store: Store, ok: bool) -> None:
        lease = await store.running()
        await begin(store, lease, effect=Effect.NONE)
        await finish(store, lease, ok=ok)
        for run in ("r1", "r2"):
            begun = await begin(store, lease, run=run, effect=Effect.NONE)
            assert (begun.go, begun.intent.state) == (False, S.DONE if ok else S.FAILED)
            assert (begun.intent.result, begun.intent.run) == ("sent", "r1")

    @pytest.mark.parametrize("effect", REPEATABLE)
    async def test_what_may_be_repeated_goes_to_another_run(self, store: Store, effect: Effect) -> None:
        lease = await store.running()
        first = await begin(store, lease, effect=effect)
        begun = await begin(store, lease, run="r2", effect=effect)
        assert (begun.go, begun.intent.run, begun.intent.n, begun.intent.state) == (True, "r2", first.intent.n, S.OPEN)
        assert await types(store) == ["recorded", "recorded"]
        with pytest.raises(Conflict) as refused:
            await finish(store, lease, run="r1")
        assert refused.value.data["state"] == "open"

    @pytest.mark.parametrize("effect", NOT_REPEATABLE)
    async def test_what_may_not_is_in_doubt_and_said_once(self, store: Store, effect: Effect) -> None:
        lease = await store.running()
        await begin(store, lease, effect=effect)
        for run in ("r2", "r2", "r3", "r1"):
            begun = await begin(store, lease, run=run, effect=effect)
            assert (begun.go, begun.intent.state, begun.intent.run) == (False, S.IN_DOUBT, "r1")
        assert await types(store) == ["recorded", "in_doubt"]
        (event,) = await store.told("intent.in_doubt")
        assert event.data == {"key": "k", "kind": "bash", "effect": effect, "summary": "mail /bob", "attempt": 1}

    @pytest.mark.parametrize(("then", "now"), [(Effect.ONCE, Effect.NONE), (Effect.NONE, Effect.ONCE)])
    async def test_the_stricter_word_counts(self, store: Store, then: Effect, now: Effect) -> None:
        lease = await store.running()
        await begin(store, lease, effect=then)
        assert not (await begin(store, lease, run="r2", effect=now)).go

    async def test_another_attempt_is_another_run(self, store: Store) -> None:
        """Also where a careless harness names its runs the same."""
        lease = await store.next_attempt(await self.begun_once(store), own=3)
        begun = await begin(store, lease, attempt=2)
        assert (begun.go, begun.intent.state, begun.intent.attempt) == (False, S.IN_DOUBT, 1)
        assert (await store.told("intent.in_doubt"))[0].data["attempt"] == 1

    async def begun_once(self, store: Store) -> Lease:
        lease = await store.running()
        await begin(store, lease)
        return lease

    async def test_an_adopted_attempt_goes_on(self, store: Store) -> None:
        await self.begun_once(store)
        lease = await store.adopted()
        assert (await begin(store, lease)).go
        assert (await finish(store, lease)).state is S.DONE

    async def test_a_key_means_one_thing(self, store: Store) -> None:
        lease = await self.begun_once(store)
        with pytest.raises(KeyReused) as refused:
            await begin(store, lease, digest="other")
        assert refused.value.data["key"] == "k"

    async def test_an_attempt_that_is_over_begins_nothing(self, store: Store) -> None:
        lease = await store.next_attempt(await store.running(), own=3)
        with pytest.raises(Fenced) as refused:
            await begin(store, lease, attempt=1)
        assert refused.value.data == {"epoch": 2, "attempt": 2}

    async def test_a_journal_has_a_bound(self, store: Store) -> None:
        lease = await store.running()
        few = RedisIntents(store.server, store.keys, most=2)
        small = RedisIntents(store.server, store.keys, journal_bytes=1000)

        async def more(intents: RedisIntents, key: str, summary: str = "") -> Begun:
            return await intents.begin(
                lease, attempt=1, key=key, run="r", kind="b", effect=Effect.NONE, summary=summary, digest="d"
            )

        await more(few, "a")
        await more(few, "b")
        with pytest.raises(TooMany) as refused:
            await more(few, "c")
        assert refused.value.data["limit"] == 2
        assert (await more(few, "a")).go
        await more(small, "c", "x" * 800)
        with pytest.raises(TooMany):
            await more(small, "d")
        assert [i.key for i in await store.intents.list("exe_a")] == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("field", "text"),
        [
            ("key", ""),
            ("key", "é" * (KEY_BYTES // 2) + "x"),
            ("key", "a\nb"),
            ("key", "\udc80"),
            ("run", ""),
            ("run", "r" * 129),
            ("kind", ""),
            ("digest", ""),
            ("summary", "x" * (SUMMARY_BYTES + 1)),
            ("summary", "\ud800"),
        ],
    )
    async def test_what_is_out_of_bounds_is_named(self, store: Store, field: str, text: str) -> None:
        lease = await store.running()
        with pytest.raises(BadInput) as refused:
            await begin(store, lease, **{field: text})
        assert refused.value.field == field
        assert refused.value.data["limit"]
        assert refused.value.data["remedy"]

    async def test_what_is_just_within_is_taken(self, store: Store) -> None:
        lease = await store.running()
        key, summary, result = "é" * (KEY_BYTES // 2), "s" * SUMMARY_BYTES, "r" * RESULT_BYTES
        assert unicodedata.is_normalized("NFC", key)
        assert (await begin(store, lease, key=key, summary=summary)).go
        intent = await store.intents.finish(lease, key=key, run="r1", ok=True, result=result)
        assert intent == await store.intents.get("exe_a", key)
        assert (intent.summary, intent.result) == (summary, result)
        with pytest.raises(BadInput):
            await finish(store, lease, result="r" * (RESULT_BYTES + 1))


class TestFinish:
    @pytest.mark.parametrize(("ok", "state"), [(True, S.DONE), (False, S.FAILED)])
    async def test_how_it_ended(self, store: Store, ok: bool, state: IntentState) -> None:
        lease = await store.running()
        await begin(store, lease)
        intent = await finish(store, lease, ok=ok, result="exit 3\nü")
        assert intent == await store.intents.get("exe_a", "k")
        assert (intent.state, intent.result, intent.settled_by) == (state, "exit 3\nü", "")
        (event,) = await store.told("intent.done")
        assert event.data == {"key": "k", "state": state}
        assert intent.ended_at == event.time

    async def test_finished_already_nothing_changes(self, store: Store) -> None:
        lease = await store.running()
        await begin(store, lease)
        first = await finish(store, lease)
        for run in ("r1", "r2"):
            assert await finish(store, lease, run=run, ok=False, result="other") == first
        assert await types(store) == ["recorded", "done"]

    async def test_the_run_that_began_it_knows_best(self, store: Store) -> None:
        lease = await doubtful(store)
        with pytest.raises(Conflict) as refused:
            await finish(store, lease, run="r2")
        assert refused.value.data["state"] == "in_doubt"
        assert (await finish(store, lease)).state is S.DONE
        assert not (await begin(store, lease, run="r2")).go

    async def test_until_it_was_given_to_another(self, store: Store) -> None:
        lease = await doubtful(store)
        await store.intents.settle("exe_a", "k", Decision.RETRY, result="", by="eva")
        assert (await begin(store, lease, run="r2")).go
        with pytest.raises(Conflict):
            await finish(store, lease)
        assert (await finish(store, lease, run="r2")).state is S.DONE


EVERY: dict[str, Callable[[RedisIntents, Lease], Awaitable[object]]] = {
    "begin": lambda i, lease: i.begin(
        lease, attempt=1, key="k", run="r1", kind="bash", effect=Effect.ONCE, summary="", digest="d"
    ),
    "finish": lambda i, lease: i.finish(lease, key="k", run="r1", ok=True, result=""),
    "get": lambda i, lease: i.get(lease.execution_id, "k"),
    "list": lambda i, lease: i.list(lease.execution_id),
    "settle": lambda i, lease: i.settle(lease.execution_id, "k", Decision.DONE, result="", by="eva"),
}
FENCED = pytest.mark.parametrize("method", ["begin", "finish"])


class TestRefused:
    async def refused(self, store: Store, method: str, lease: Lease) -> None:
        before = await store.executions.get("exe_a")
        intents = await store.intents.list("exe_a")
        with pytest.raises(Fenced) as fenced:
            await EVERY[method](store.intents, lease)
        assert fenced.value.data["epoch"] == before.epoch
        assert await store.executions.get("exe_a") == before
        assert await store.intents.list("exe_a") == intents

    @FENCED
    async def test_another_epoch_owns_it(self, store: Store, method: str) -> None:
        lease = await store.running()
        await begin(store, lease)
        await store.adopted()
        await self.refused(store, method, lease)

    @FENCED
    async def test_nobody_owns_it(self, store: Store, method: str) -> None:
        lease = await store.running()
        await begin(store, lease)
        await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1)
        await self.refused(store, method, lease)

    @FENCED
    async def test_it_has_ended(self, store: Store, method: str) -> None:
        lease = await store.running()
        await begin(store, lease)
        await store.finish(lease, own=3)
        await self.refused(store, method, lease)

    @pytest.mark.parametrize("method", EVERY)
    async def test_no_such_execution(self, store: Store, method: str) -> None:
        with pytest.raises(NotFound) as unknown:
            await EVERY[method](store.intents, Lease("exe_none", 1, "w1", 15.0))
        assert unknown.value.data == {"kind": "execution", "id": "exe_none"}

    @pytest.mark.parametrize("method", ["finish", "get", "settle"])
    async def test_no_such_intent(self, store: Store, method: str) -> None:
        lease = await store.running()
        with pytest.raises(NotFound) as unknown:
            await EVERY[method](store.intents, lease)
        assert unknown.value.data == {"kind": "intent", "id": "k"}

    @pytest.mark.parametrize("method", EVERY)
    async def test_the_store_is_away(self, installation: str, method: str) -> None:
        server = Server("unix:///nowhere/redis.sock", patience_s=0.05)
        with pytest.raises(StoreUnavailable):
            await EVERY[method](RedisIntents(server, Keys(installation)), Lease("exe_a", 1, "w1", 15.0))
        await server.aclose()
