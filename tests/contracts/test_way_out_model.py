"""Model calls, budgets and intents against a small pure model, step by random step.

The scripts run on the real server, each of them twice when the dice say that its reply was lost. What must always hold:
no call is begun beyond the budget, counting what is spent, reserved and needed; what the history says was spent is what
the record says; what was recorded is never made again; no intent of effect once goes to more runs than it has decisions
and one; no old epoch's word is taken. `make test` takes a few runs; `make test-all` (marker full) at least 1,000. The
last test switches the fence off and must see the rules broken: it shows that this machine can fail.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from orchestrator.calls import Answer, Asked, ModelUsage, OverBudget, Replay, Reserved
from orchestrator.errors import Conflict, Fenced
from orchestrator.execution import Budget, BudgetWant, Limits, Spend
from orchestrator.history import Lease
from orchestrator.intents import Decision, Effect, IntentState
from orchestrator.stores.redis import Keys, RedisCalls, RedisExecutions, RedisHistory, RedisIntents
from tests.contracts.redis_store import LosesReplies, Store

T = TypeVar("T")
ID = "exe_a"
Name = tuple[str, str, int]  # key, digest, how manieth


@dataclass
class Call:
    name: Name
    epoch: int
    asked: Asked
    state: str = "open"
    answer: Answer | None = None


@dataclass
class Model:
    """What must be true, in a few lines."""

    epoch: int = 0
    attempt: int = 1
    ended: bool = False
    budget: Budget = field(default_factory=Budget)
    spend: Spend = field(default_factory=Spend)
    calls: dict[str, Call] = field(default_factory=dict)
    names: dict[Name, str] = field(default_factory=dict)
    had: Counter[tuple[int, str]] = field(default_factory=Counter)
    goes: Counter[str] = field(default_factory=Counter)  # of an intent; asked twice by who holds it is one
    holds: dict[str, tuple[int, str]] = field(default_factory=dict)  # intent → the attempt and run told to go
    over: set[str] = field(default_factory=set)  # intents known to have ended
    retries: Counter[str] = field(default_factory=Counter)

    def name(self, asked: Asked) -> Name:
        return (asked.key, asked.digest, 0 if asked.key else self.had[self.attempt, asked.digest])

    def reserve(self, usage: ModelUsage, sign: int) -> None:
        self.spend = replace(
            self.spend,
            reserved_micros=self.spend.reserved_micros + sign * usage.cost_micros,
            reserved_tokens=self.spend.reserved_tokens + sign * usage.tokens,
        )

    def settle(self, call: Call, state: str, usage: ModelUsage | None) -> None:
        call.state = state
        self.reserve(call.asked.reserve, -1)
        if usage is not None:
            self.spend = replace(
                self.spend,
                micros=self.spend.micros + usage.cost_micros,
                input_tokens=self.spend.input_tokens + usage.tokens - usage.output_tokens,
                output_tokens=self.spend.output_tokens + usage.output_tokens,
                calls=self.spend.calls + 1,
            )

    def left(self, epoch: float) -> list[Call]:
        return [call for call in self.calls.values() if call.state == "open" and call.epoch < epoch]

    def fits(self, usage: ModelUsage) -> bool:
        spend, budget = self.spend, self.budget
        micros = spend.micros + spend.reserved_micros + usage.cost_micros
        tokens = spend.input_tokens + spend.output_tokens + spend.reserved_tokens + usage.tokens
        return micros <= (budget.micros or micros) and tokens <= (budget.tokens or tokens)


usages = st.builds(ModelUsage, *[st.sampled_from((9, 20, 0))] * 4, cost_micros=st.sampled_from((30, 45, 1)))
lost = st.sampled_from((False, False, True))
limits = st.sampled_from((100, None, 60, 200, 400))


class WayOut(RuleBasedStateMachine):
    """Owners of which all but the newest are zombies, on one execution."""

    url: ClassVar[str]
    fenced: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.leases: list[Lease] = []
        self.own = 2
        self.wait(self.open())

    async def open(self) -> None:
        self.server, keys = LosesReplies(self.url), Keys(f"m{uuid.uuid4().hex[:10]}")
        executions, history = RedisExecutions(self.server, keys), RedisHistory(self.server, keys)
        self.store = Store(self.server, keys, executions, history)
        self.calls = RedisCalls(self.server, keys, fenced=self.fenced)
        self.intents = RedisIntents(self.server, keys, fenced=self.fenced)

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        async def close() -> None:
            await self.store.executions.remove(ID) if self.model.ended else None
            await self.store.history.aclose()
            await self.server.aclose()

        try:
            self.wait(close())
        finally:
            self.loop.close()

    def owned(self, back: int, lose: bool) -> tuple[Lease, bool]:
        """One of the last leases; whether it is the owner's."""
        self.server.lose = lose
        lease = self.leases[-1 - min(back, len(self.leases) - 1)]
        return lease, lease is self.leases[-1] and not self.model.ended

    def word(self, mine: bool, coroutine: Coroutine[Any, Any, T]) -> T | None:
        """Its answer; None: it was refused, as it had to be."""
        try:
            answer = self.wait(coroutine)
        except Fenced:
            assert not mine, "the owner was refused"
            return None
        assert mine, f"a zombie's word was taken: {answer}"
        return answer

    # Owners ------------------------------------------------------------------------------------------------------

    @initialize(micros=limits, tokens=limits)
    def submit(self, micros: int | None, tokens: int | None) -> None:
        self.model.budget = Budget(micros, tokens)
        self.leases = [self.wait(self.store.running(limits=Limits(budget=self.model.budget)))]
        self.model.epoch = 1

    @rule(recovers=st.booleans(), lose=lost)
    def adopted(self, recovers: bool, lose: bool) -> None:
        if self.model.ended:
            return
        self.leases.append(self.wait(self.store.adopted()))
        self.model.epoch += 1
        self.own = 0
        if recovers:
            self.recover(0, lose)

    @rule()
    def another_attempt(self) -> None:
        model = self.model
        if model.ended:
            return
        lease = self.wait(self.store.next_attempt(self.leases[-1], own=self.own + 1, attempt=model.attempt + 1))
        self.leases.append(lease)
        model.epoch, model.attempt, self.own = model.epoch + 1, model.attempt + 1, 2

    @rule(sure=st.integers(0, 7))
    def end(self, sure: int) -> None:
        if sure < 7 or self.model.ended:  # rarely: little can happen after it
            return
        self.wait(self.store.finish(self.leases[-1], own=self.own + 1))
        for call in self.model.left(float("inf")):
            self.model.settle(call, "cut", call.asked.if_cut)
        self.model.ended = True

    @rule(micros=limits, tokens=limits, lose=lost)
    def budget(self, micros: int | None, tokens: int | None, lose: bool) -> None:
        if self.model.ended:
            return
        self.server.lose = lose
        self.model.budget = Budget(micros, tokens, "wait")
        after = self.wait(self.store.executions.want(ID, BudgetWant(uuid.uuid4().hex, self.model.budget)))
        assert (after.budget, after.over_budget) == (self.model.budget, "")

    # Calls -------------------------------------------------------------------------------------------------------

    @rule(back=st.sampled_from((0, 0, 0, 1)), lose=lost)
    def recover(self, back: int, lose: bool) -> None:
        lease, mine = self.owned(back, lose)
        left = self.model.left(self.model.epoch)
        if self.word(mine, self.calls.recover(lease)) is not None:
            for call in left:
                self.model.settle(call, "cut", call.asked.if_cut)

    @rule(
        back=st.sampled_from((0, 0, 0, 0, 1)),
        key=st.sampled_from(("", "", "a", "b")),
        digest=st.sampled_from("xy"),
        reserve=usages,
        lose=lost,
    )
    def begin(self, back: int, key: str, digest: str, reserve: ModelUsage, lose: bool) -> None:
        model = self.model
        lease, mine = self.owned(back, lose)
        if_cut = replace(reserve, output_tokens=0, cost_micros=reserve.cost_micros // 2)
        asked = Asked(digest, key, reserve, if_cut)
        got = self.word(mine, self.calls.begin(lease, model.attempt, asked))
        if got is None:
            return
        name = model.name(asked)
        known = model.calls.get(model.names.get(name, ""))
        if known and known.state == "open" and known.epoch < model.epoch:
            model.settle(known, "cut", known.asked.if_cut)
        if known and known.state == "recorded":
            assert got == Replay(model.names[name], known.answer), "what was recorded is made again"  # type: ignore[arg-type]
            model.spend = replace(model.spend, replays=model.spend.replays + 1)
        elif known and known.state == "open":
            assert got == Reserved(model.names[name], model.spend)
        elif model.fits(reserve):
            assert isinstance(got, Reserved), f"refused within the budget: {got}"
            assert got.call not in model.calls
            model.calls[got.call] = Call(name, model.epoch, asked)
            model.names[name] = got.call
            model.reserve(reserve, 1)
            assert got.spend == model.spend
        else:
            assert isinstance(got, OverBudget), f"begun beyond the budget: {got}, {model.budget}"
            assert got.spend == model.spend

    @rule(key=st.sampled_from(("", "a", "b")), digest=st.sampled_from("xy"), deliver=st.booleans(), lose=lost)
    def as_meant(self, key: str, digest: str, deliver: bool, lose: bool) -> None:
        """Asked, answered, recorded, and asked again, by who has the answer or has not: so that runs get far."""
        model, small = self.model, ModelUsage(1, 1, cost_micros=3)
        if model.ended:
            return
        self.begin(0, key, digest, small, False)
        name = model.name(Asked(digest, key, small, small))
        made = model.names.get(name)
        if made and model.calls[made].state == "open":
            self.end_one(made, 0, "recorded", 1, deliver, lose)
        self.begin(0, key, digest, small, lose)

    @rule(
        data=st.data(),
        back=st.sampled_from((0, 0, 0, 0, 1)),
        how=st.sampled_from(("recorded", "recorded", "passed", "cut", "cancelled")),
        cheaper=st.integers(0, 30),
        deliver=st.booleans(),
        lose=lost,
    )
    def end_call(self, data: st.DataObject, back: int, how: str, cheaper: int, deliver: bool, lose: bool) -> None:
        model = self.model
        if not model.calls:
            return
        made = data.draw(
            st.sampled_from([*sorted(model.calls), *[c for c in model.calls if model.calls[c].state == "open"]])
        )
        self.end_one(made, back, how, cheaper, deliver, lose)

    def end_one(self, made: str, back: int, how: str, cheaper: int, deliver: bool, lose: bool) -> None:
        model = self.model
        call = model.calls[made]
        if call.name not in model.names or model.names[call.name] != made:  # another goes by that name now
            return
        lease, mine = self.owned(back, lose)
        reserve = call.asked.reserve
        used = replace(reserve, cost_micros=max(0, reserve.cost_micros - cheaper), output_tokens=0)
        answer = Answer(200, {}, made.encode(), True) if how == "recorded" else None
        match how:
            case "cut":
                step = self.calls.cut(lease, made, used, "why")
            case "cancelled":
                step = self.calls.cancel(lease, made)
            case _:
                step = self.calls.finish(lease, made, answer, used, {})
        if (spend := self.word(mine, step)) is None:
            return
        if call.state == "open":
            model.settle(call, how, None if how == "cancelled" else used)
            call.answer = answer
        assert spend == model.spend
        if deliver and call.answer is not None:
            self.delivered(lease, call, made)

    def delivered(self, lease: Lease, call: Call, made: str) -> None:
        self.wait(self.calls.delivered(lease, self.model.attempt, made))
        key, digest, k = call.name
        if not key:
            at = (self.model.attempt, digest)
            self.model.had[at] = max(self.model.had[at], k + 1)

    # Intents -----------------------------------------------------------------------------------------------------

    @rule(back=st.sampled_from((0, 0, 0, 1)), key=st.sampled_from("pq"), run=st.sampled_from("rst"), lose=lost)
    def begin_intent(self, back: int, key: str, run: str, lose: bool) -> None:
        model = self.model
        lease, mine = self.owned(back, lose)
        begun = self.word(
            mine,
            self.intents.begin(
                lease,
                attempt=model.attempt,
                key=key,
                run=run,
                kind="bash",
                effect=Effect.ONCE,
                summary="",
                digest="d",
            ),
        )
        if begun is None:
            return
        if begun.go:
            assert key not in model.over, "what has ended was begun again"
            assert begun.intent.state is IntentState.OPEN
            model.goes[key] += model.holds.get(key) != (model.attempt, run)
            model.holds[key] = (model.attempt, run)
        else:
            assert key in model.goes, "nobody has begun it, and nobody may"
            assert begun.intent.state in (IntentState.IN_DOUBT, IntentState.DONE, IntentState.FAILED)
            model.holds.pop(key, None)

    @rule(back=st.sampled_from((0, 0, 0, 1)), key=st.sampled_from("pq"), run=st.sampled_from("rst"), ok=st.booleans())
    def finish_intent(self, back: int, key: str, run: str, ok: bool) -> None:
        lease, mine = self.owned(back, False)
        if key not in self.model.goes:
            return
        try:
            intent = self.word(mine, self.intents.finish(lease, key=key, run=run, ok=ok, result=run))
        except Conflict:
            return
        if intent is not None:
            assert intent.state in (IntentState.DONE, IntentState.FAILED)
            self.model.over.add(key)

    @rule(key=st.sampled_from("pq"), decision=st.sampled_from((*Decision, Decision.RETRY)), lose=lost)
    def settle_intent(self, key: str, decision: Decision, lose: bool) -> None:
        model = self.model
        if key not in model.goes:
            return
        before = self.wait(self.intents.get(ID, key))
        self.server.lose = lose
        try:
            after = self.wait(self.intents.settle(ID, key, decision, result="", by="eva"))
        except Conflict:
            assert before.state is not IntentState.IN_DOUBT, "nobody can decide it"
            return
        if before.state is not IntentState.IN_DOUBT:
            assert after == before, "decided though it was not in doubt"
        elif decision is Decision.RETRY:
            model.retries[key] += 1
            model.holds.pop(key, None)
        else:
            model.over.add(key)

    # What must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def an_intent_goes_once_and_once_for_each_retry(self) -> None:
        for key, goes in self.model.goes.items():
            assert goes <= 1 + self.model.retries[key], f"{key} was run twice: {goes}"

    @invariant()
    def the_money_is_the_models(self) -> None:
        execution = self.wait(self.store.executions.get(ID))
        assert execution.spend == self.model.spend, "the record's figures are not the model's"
        assert not self.model.ended or execution.spend.reserved_micros == execution.spend.reserved_tokens == 0

    @invariant()
    def whoever_counts_outcomes_counts_what_is_in_doubt(self) -> None:
        if self.model.ended:
            doubtful = self.wait(self.intents.list(ID, states=frozenset({IntentState.IN_DOUBT})))
            (all,) = self.wait(self.store.executions.tally(datetime.fromtimestamp(0, UTC)))
            assert all.in_doubt == len(doubtful)

    @invariant()
    def the_history_says_the_same(self) -> None:
        told = self.wait(self.store.told("usage", "model.cut", "intent.recorded", "intent.settled"))
        paid = [e for e in told if e.type == "model.cut" or (e.type == "usage" and not e.data["replayed"])]
        spend = self.model.spend
        assert sum(e.data["cost_micros"] for e in told if "cost_micros" in e.data) == spend.micros, "money untold"
        assert sum(e.data["output_tokens"] for e in paid) == spend.output_tokens
        assert len(paid) == spend.calls, "a call told twice or never"
        assert sum(e.type == "usage" and e.data["replayed"] for e in told) == spend.replays
        assert len({e.data["call"] for e in paid}) == len(paid)
        recorded = Counter(e.data["key"] for e in told if e.type == "intent.recorded")
        for key, goes in self.model.goes.items():
            assert recorded[key] == goes, "an intent's go without its event, or twice"


def check(url: str, runs: int, *, fenced: bool = True) -> None:
    machine = type("WayOut", (WayOut,), {"url": url, "fenced": fenced})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=40,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink) if fenced else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )


def test_some_runs(redis_url: str) -> None:
    check(redis_url, 60)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_thousand_runs(redis_url: str) -> None:
    check(redis_url, 1000)


def test_without_the_fence_the_rules_break(redis_url: str) -> None:
    with pytest.raises(AssertionError, match="zombie"):
        check(redis_url, 300, fenced=False)
