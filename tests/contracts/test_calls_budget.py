"""The contract of `Calls` about budgets: what is refused or held, how it is said, how it is taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.calls import Answer, Asked, ModelUsage, OverBudget, Replay, Reserved
from orchestrator.execution import Budget, BudgetWant, Limits, Spend
from orchestrator.history import Lease
from tests.contracts.redis_store import Store

FACTS = {"api": "openai-chat", "model": "m"}
ANSWER = Answer(200, {}, b"{}", False)


def asked(key: str, micros: int = 100, tokens: int = 30) -> Asked:
    return Asked(f"digest {key}", key, ModelUsage(0, tokens, cost_micros=micros), ModelUsage(), FACTS)


async def running(store: Store, **budget: object) -> Lease:
    return await store.running(limits=Limits(budget=Budget(**budget)))  # type: ignore[arg-type]


async def made(store: Store, lease: Lease, call: str, micros: int = 100, tokens: int = 30) -> Spend:
    return await store.calls.finish(lease, call, ANSWER, ModelUsage(0, tokens, cost_micros=micros), FACTS)


class TestWithin:
    @pytest.mark.parametrize("budget", [{"micros": 300}, {"tokens": 90}, {"micros": 300, "tokens": 90}])
    async def test_spent_reserved_and_needed_may_reach_it(self, store: Store, budget: dict[str, int]) -> None:
        lease = await running(store, **budget)
        one = await store.calls.begin(lease, 1, asked("a"))
        assert isinstance(one, Reserved)
        await made(store, lease, one.call)
        assert isinstance(await store.calls.begin(lease, 1, asked("b")), Reserved)
        assert isinstance(await store.calls.begin(lease, 1, asked("c")), Reserved)
        for over in (asked("d", 1, 1), asked("e", 1, 1)):
            assert isinstance(await store.calls.begin(lease, 1, over), OverBudget)

    async def test_without_one_nothing_is_refused(self, store: Store) -> None:
        lease = await running(store)
        for n in range(3):
            assert isinstance(await store.calls.begin(lease, 1, asked(str(n), 10**13, 10**12)), Reserved)
        assert (await store.executions.get("exe_a")).spend == Spend(
            reserved_micros=3 * 10**13, reserved_tokens=3 * 10**12
        )

    async def test_what_is_given_back_can_be_had_again(self, store: Store) -> None:
        lease = await running(store, micros=100)
        one = await store.calls.begin(lease, 1, asked("a"))
        assert isinstance(one, Reserved)
        assert isinstance(await store.calls.begin(lease, 1, asked("b")), OverBudget)
        await store.calls.cancel(lease, one.call)
        two = await store.calls.begin(lease, 1, asked("b"))
        assert isinstance(two, Reserved)
        await made(store, lease, two.call, micros=40)
        assert isinstance(await store.calls.begin(lease, 1, asked("c", 60)), Reserved)

    async def test_a_replay_needs_none(self, store: Store) -> None:
        lease = await running(store, micros=100)
        one = await store.calls.begin(lease, 1, asked("a"))
        assert isinstance(one, Reserved)
        await made(store, lease, one.call)
        assert isinstance(await store.calls.begin(lease, 1, asked("b", 1)), OverBudget)
        assert isinstance(await store.calls.begin(lease, 1, asked("a")), Replay)

    async def test_tokens_are_of_every_kind(self, store: Store) -> None:
        lease = await running(store, tokens=10)
        every = ModelUsage(1, 2, 3, 4)
        assert isinstance(await store.calls.begin(lease, 1, replace(asked("a"), reserve=every)), Reserved)
        assert isinstance(await store.calls.begin(lease, 1, asked("b", 0, 1)), OverBudget)
        await store.calls.finish(lease, "c1", ANSWER, every, FACTS)
        assert isinstance(await store.calls.begin(lease, 1, asked("b", 0, 1)), OverBudget)

    async def test_one_that_cost_more_than_reserved_stops_the_next(self, store: Store) -> None:
        lease = await running(store, micros=100)
        one = await store.calls.begin(lease, 1, asked("a"))
        assert isinstance(one, Reserved)
        assert (await made(store, lease, one.call, micros=150)).micros == 150
        assert isinstance(await store.calls.begin(lease, 1, asked("b", 0, 0)), OverBudget)


class TestExceeded:
    async def test_it_says_the_figures(self, store: Store) -> None:
        lease = await running(store, micros=300, tokens=1000)
        one = await store.calls.begin(lease, 1, asked("a"))
        assert isinstance(one, Reserved)
        await made(store, lease, one.call, micros=90, tokens=20)
        await store.calls.begin(lease, 1, asked("b"))
        spent = Spend(90, 0, 20, 100, 30, calls=1)
        assert await store.calls.begin(lease, 1, asked("c", 111, 7)) == OverBudget(spent, 111, 7, 300, 1000, False)
        (event,) = await store.told("budget.exceeded")
        assert event.data == {
            "spent_micros": 90,
            "reserved_micros": 100,
            "needed_micros": 111,
            "limit_micros": 300,
            "spent_tokens": 20,
            "reserved_tokens": 30,
            "needed_tokens": 7,
            "limit_tokens": 1000,
            "on_exceeded": "fail",
            **FACTS,
        }
        record = await store.executions.get("exe_a")
        assert record.over_budget == "90 micros spent, 100 reserved, 111 needed, the limit is 300"
        assert record.spend == spent  # nothing was reserved for it

    async def test_both_limits_are_said_when_both_are_passed(self, store: Store) -> None:
        lease = await running(store, micros=1, tokens=2)
        assert await store.calls.begin(lease, 1, asked("a")) == OverBudget(Spend(), 100, 30, 1, 2, False)
        assert (await store.executions.get("exe_a")).over_budget == (
            "0 micros spent, 0 reserved, 100 needed, the limit is 1; "
            "0 tokens spent, 0 reserved, 30 needed, the limit is 2"
        )

    async def test_no_limit_is_null(self, store: Store) -> None:
        lease = await running(store, tokens=2)
        got = await store.calls.begin(lease, 1, asked("a"))
        assert isinstance(got, OverBudget)
        assert (got.limit_micros, got.limit_tokens) == (None, 2)
        (event,) = await store.told("budget.exceeded")
        assert event.data["limit_micros"] is None

    async def test_once_for_each_budget(self, store: Store) -> None:
        lease = await running(store, micros=10)
        for key in "aab":
            assert isinstance(await store.calls.begin(lease, 1, asked(key)), OverBudget)
        assert len(await store.told("budget.exceeded")) == 1
        assert "100 needed" in (await store.executions.get("exe_a")).over_budget
        for wish in ("b1", "b2"):  # another one, even of the same size, is said again
            after = await store.executions.want("exe_a", BudgetWant(wish, Budget(micros=20)))
            assert after.over_budget == ""
            await store.calls.begin(lease, 1, asked("a"))
            await store.calls.begin(lease, 1, asked("b"))
        assert [e.data["limit_micros"] for e in await store.told("budget.exceeded")] == [10, 20, 20]

    async def test_the_owner_is_rung(self, store: Store) -> None:
        lease = await running(store, micros=10)
        await store.calls.begin(lease, 1, asked("a"))
        assert await store.executions.wait("w1", shared=False, timeout_s=30) == ("exe_a",)


class TestHeld:
    async def test_a_raise_lets_it_through(self, store: Store) -> None:
        lease = await running(store, micros=10, on_exceeded="wait")
        got = await store.calls.begin(lease, 1, asked("a"))
        assert isinstance(got, OverBudget)
        assert got.wait
        (event,) = await store.told("budget.exceeded")
        assert event.data["on_exceeded"] == "wait"
        assert (await store.executions.get("exe_a")).over_budget
        await store.executions.want("exe_a", BudgetWant("b1", Budget(micros=100, on_exceeded="wait")))
        assert isinstance(await store.calls.begin(lease, 1, asked("a")), Reserved)
        assert (await store.executions.get("exe_a")).over_budget == ""

    async def test_room_made_by_another_lets_it_through(self, store: Store) -> None:
        lease = await running(store, micros=150, on_exceeded="wait")
        other = await store.calls.begin(lease, 1, asked("a"))
        assert isinstance(other, Reserved)
        assert isinstance(await store.calls.begin(lease, 1, asked("b")), OverBudget)
        assert isinstance(await store.calls.begin(lease, 1, asked("small", 10)), Reserved)
        assert (await store.executions.get("exe_a")).over_budget  # that one is held all the same
        await made(store, lease, other.call, micros=5)
        assert isinstance(await store.calls.begin(lease, 1, asked("b")), Reserved)
        assert (await store.executions.get("exe_a")).over_budget == ""
        assert len(await store.told("budget.exceeded")) == 1

    async def test_a_refused_one_stays_said(self, store: Store) -> None:
        lease = await running(store, micros=150)
        other = await store.calls.begin(lease, 1, asked("a"))
        assert isinstance(other, Reserved)
        assert isinstance(await store.calls.begin(lease, 1, asked("b")), OverBudget)
        await made(store, lease, other.call, micros=5)
        assert isinstance(await store.calls.begin(lease, 1, asked("b")), Reserved)
        assert (await store.executions.get("exe_a")).over_budget

    async def test_the_word_of_the_budget_as_it_is_now_counts(self, store: Store) -> None:
        lease = await running(store, micros=10)
        await store.executions.want("exe_a", BudgetWant("b1", Budget(tokens=5, on_exceeded="wait")))
        assert await store.calls.begin(lease, 1, asked("a")) == OverBudget(Spend(), 100, 30, None, 5, True)
        await store.executions.want("exe_a", BudgetWant("b2", Budget()))
        assert isinstance(await store.calls.begin(lease, 1, asked("a")), Reserved)
