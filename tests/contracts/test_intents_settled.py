"""The contract of `Intents` about reading the journal and deciding on what is in doubt."""

from __future__ import annotations

import pytest

from orchestrator.errors import BadInput, Conflict, NotFound
from orchestrator.history import Lease
from orchestrator.intents import RESULT_BYTES, Decision, Effect, Intent, IntentState
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.stores.redis import RedisIntents
from tests.contracts.redis_store import LosesReplies, Store
from tests.contracts.test_intents import begin, doubtful, finish, types

S = IntentState
TO = {Decision.RETRY: S.RETRY, Decision.DONE: S.DONE, Decision.FAIL: S.FAILED}
EVERY_DECISION = pytest.mark.parametrize("decision", Decision)


async def settle(store: Store, decision: Decision, *, result: str = "by hand", by: str = "eva") -> Intent:
    return await store.intents.settle("exe_a", "k", decision, result=result, by=by)


async def is_over(store: Store, lease: Lease, how: str) -> None:
    """The first attempt, from RUNNING."""
    match how:
        case "lost":
            await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1)
        case "another":
            await store.next_attempt(lease, own=3)
        case "asleep":
            await store.move(lease, Trigger.HIBERNATE, own=3)
            await store.move(lease, Trigger.CUT, own=4, seen=0)
        case "ended":
            await store.finish(lease, own=3)


EVERY_END = pytest.mark.parametrize("how", ["lost", "another", "asleep", "ended"])


class TestRead:
    async def test_in_order_by_pages(self, store: Store) -> None:
        lease = await store.running()
        for n in range(1, 8):
            await begin(store, lease, key=f"k{n}", effect=Effect.NONE)
        await begin(store, lease, key="k3", run="r2", effect=Effect.NONE)  # begun again: its place stays
        every = await store.intents.list("exe_a")
        assert [(i.n, i.key) for i in every] == [(n, f"k{n}") for n in range(1, 8)]
        assert await store.intents.list("exe_a", limit=3) == every[:3]
        assert await store.intents.list("exe_a", after=3, limit=2) == every[3:5]
        assert await store.intents.list("exe_a", after=7) == []
        assert await store.intents.list("exe_a", limit=0) == []

    async def test_by_state(self, store: Store) -> None:
        lease = await store.running()
        for n in range(1, 7):
            await begin(store, lease, key=f"k{n}")
        for n in (2, 4, 5):
            await store.intents.finish(lease, key=f"k{n}", run="r1", ok=n != 4, result=f"of {n}")

        async def numbers(*states: IntentState, after: int = 0, limit: int = 100) -> list[int]:
            found = await store.intents.list("exe_a", states=frozenset(states), after=after, limit=limit)
            return [i.n for i in found]

        assert await numbers(S.DONE) == [2, 5]
        assert await numbers(S.DONE, S.FAILED) == [2, 4, 5]
        assert await numbers(S.OPEN, after=1, limit=2) == [3, 6]
        assert await numbers(S.OPEN, limit=1) == [1]
        assert await numbers(S.IN_DOUBT) == []
        assert [i.result for i in await store.intents.list("exe_a", states=frozenset({S.DONE}))] == ["of 2", "of 5"]

    async def test_a_long_journal(self, store: Store) -> None:
        """More than is read at once."""
        lease = await store.running()
        for n in range(1, 1102):
            await begin(store, lease, key=f"k{n}")
        await store.intents.finish(lease, key="k1100", run="r1", ok=True, result="")
        assert [i.n for i in await store.intents.list("exe_a", limit=2000)] == list(range(1, 1102))
        assert [i.n for i in await store.intents.list("exe_a", states=frozenset({S.DONE}), limit=1)] == [1100]

    @EVERY_END
    async def test_an_open_one_whose_attempt_is_over_is_in_doubt(self, store: Store, how: str) -> None:
        lease = await store.running()
        for effect in Effect:
            await begin(store, lease, key=effect.value, effect=effect)
        await begin(store, lease, key="finished")
        await store.intents.finish(lease, key="finished", run="r1", ok=True, result="")
        assert {i.state for i in await store.intents.list("exe_a", limit=4)} == {S.OPEN}
        await is_over(store, lease, how)
        read = {i.key: i.state for i in await store.intents.list("exe_a")}
        expected = {"none": S.OPEN, "idempotent": S.OPEN, "once": S.IN_DOUBT, "unknown": S.IN_DOUBT, "finished": S.DONE}
        assert read == expected
        assert {key: (await store.intents.get("exe_a", key)).state for key in expected} == expected
        doubts = await store.intents.list("exe_a", states=frozenset({S.IN_DOUBT}))
        assert {i.key for i in doubts} == {"once", "unknown"}

    async def test_an_adopted_attempt_is_not_over(self, store: Store) -> None:
        await begin(store, await store.running())
        await store.adopted()
        assert (await store.intents.get("exe_a", "k")).state is S.OPEN

    async def test_it_goes_with_its_execution(self, store: Store) -> None:
        lease = await store.running()
        await begin(store, lease)
        await finish(store, lease)
        await store.finish(lease, own=3)
        assert (await store.intents.get("exe_a", "k")).result == "sent"  # not with its end
        await store.executions.remove("exe_a")
        with pytest.raises(NotFound):
            await store.intents.list("exe_a")
        assert await store.server.ask("KEYS", f"{store.keys.prefix}*exe_a*") == []


class TestSettle:
    @EVERY_DECISION
    async def test_a_decision_is_written_said_and_rung(self, store: Store, decision: Decision) -> None:
        lease = await doubtful(store)
        intent = await settle(store, decision)
        assert intent == await store.intents.get("exe_a", "k")
        assert (intent.state, intent.settled_by, intent.run) == (TO[decision], "eva", "r1")
        assert intent.result == ("" if decision is Decision.RETRY else "by hand")
        assert (intent.ended_at is None) == (decision is Decision.RETRY)
        (event,) = await store.told("intent.settled")
        assert (event.source, event.data) == ("platform", {"key": "k", "decision": decision, "by": "eva"})
        assert await store.executions.wait("w1", shared=False, timeout_s=30) == ("exe_a",)
        begun = await begin(store, lease, run="r2")
        assert begun.go == (decision is Decision.RETRY)
        assert begun.intent.state is (S.OPEN if begun.go else TO[decision])

    @EVERY_DECISION
    async def test_the_same_again_changes_nothing(self, store: Store, decision: Decision) -> None:
        await doubtful(store)
        first = await settle(store, decision)
        assert await settle(store, decision, result="other", by="ada") == first
        for other in set(Decision) - {decision}:
            with pytest.raises(Conflict):
                await settle(store, other)
        assert (await types(store)).count("settled") == 1

    async def test_a_retry_is_one_go(self, store: Store) -> None:
        lease = await doubtful(store)
        await settle(store, Decision.RETRY)
        assert (await begin(store, lease, run="r2")).go
        again = await settle(store, Decision.RETRY)  # the same again, though it was begun meanwhile
        assert (again.state, again.run) == (S.OPEN, "r2")
        assert not (await begin(store, lease, run="r3")).go
        await settle(store, Decision.RETRY, by="ada")  # in doubt once more: another decision
        assert (await begin(store, lease, run="r3")).go
        assert await types(store) == [
            *("recorded", "in_doubt", "settled"),
            *("recorded", "in_doubt", "settled"),
            "recorded",
        ]
        assert (await finish(store, lease, run="r3")).settled_by == "ada"

    async def test_a_reply_lost_for_long_decides_nothing_more(self, store: Store, redis_url: str) -> None:
        lease = await doubtful(store)
        losing = LosesReplies(redis_url)
        await RedisIntents(losing, store.keys).settle("exe_a", "k", Decision.RETRY, result="", by="eva")
        assert (await begin(store, lease, run="r2")).go
        assert not (await begin(store, lease, run="r3")).go
        name, args = losing.sent
        await losing.run(name, *args)
        await losing.aclose()
        assert (await store.intents.get("exe_a", "k")).state is S.IN_DOUBT

    async def test_the_run_that_knows_may_still_say_so_before_a_retry(self, store: Store) -> None:
        lease = await doubtful(store)
        await settle(store, Decision.RETRY)
        assert (await finish(store, lease)).state is S.DONE
        assert not (await begin(store, lease, run="r2")).go

    async def test_what_a_person_decided_stays(self, store: Store) -> None:
        lease = await doubtful(store)
        settled = await settle(store, Decision.FAIL)
        assert await finish(store, lease) == settled

    @EVERY_END
    @EVERY_DECISION
    async def test_in_every_state(self, store: Store, how: str, decision: Decision) -> None:
        lease = await store.running()
        await begin(store, lease)
        await is_over(store, lease, how)
        before = await store.history.tail("exe_a")
        assert (await settle(store, decision)).state is TO[decision]
        after = await store.history.tail("exe_a")
        if how == "ended":  # nothing follows the end
            assert await store.state("exe_a") is ExecutionState.FINISHED
            assert (after.tail, after.closed) == (before.tail, True)
            length = await store.server.ask("XLEN", store.keys.history("exe_a"))
            assert length == after.tail + 1  # and the end marker is last
        else:
            assert after.tail == before.tail + 1
        assert (await store.intents.get("exe_a", "k")).settled_by == "eva"

    @pytest.mark.parametrize("effect", [Effect.NONE, Effect.ONCE])
    async def test_only_what_is_in_doubt(self, store: Store, effect: Effect) -> None:
        lease = await store.running()
        await begin(store, lease, effect=effect)
        with pytest.raises(Conflict) as refused:
            await settle(store, Decision.DONE)
        assert (refused.value.data["state"], bool(refused.value.data["remedy"])) == ("open", True)
        await finish(store, lease)
        with pytest.raises(Conflict) as refused:
            await settle(store, Decision.DONE)  # it ended so by itself: nobody has to decide
        assert refused.value.data["state"] == "done"

    async def test_what_may_be_repeated_is_never_in_doubt(self, store: Store) -> None:
        lease = await store.running()
        await begin(store, lease, effect=Effect.IDEMPOTENT)
        await store.finish(lease, own=3)
        with pytest.raises(Conflict):
            await settle(store, Decision.DONE)

    async def test_bounds(self, store: Store) -> None:
        await doubtful(store)
        for field, made in (("result", {"result": "x" * (RESULT_BYTES + 1)}), ("by", {"by": ""}), ("by", {"by": "\n"})):
            with pytest.raises(BadInput) as refused:
                await settle(store, Decision.DONE, **made)
            assert refused.value.field == field
