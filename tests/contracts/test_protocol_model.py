"""The protocol of claims, leases, appends, messages and wishes against a small pure model, step by random step.

The scripts run on the real server. What must always hold: seq is contiguous from 1, a history ends at most once and
nothing follows its end, no write of an old epoch is taken, each frame and each message is there exactly once and in
order. `make test` takes a few runs; `make test-all` (marker full) at least 1,000. The last test switches the fence off
and must see the same rules broken: it shows that this machine can fail.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from orchestrator.errors import Closed, Conflict, Fenced, Resend
from orchestrator.events import Cursor, Event
from orchestrator.execution import CancelWant, Limits, Outcome, OutcomeKind, Reason, Spec
from orchestrator.executions import Claim
from orchestrator.history import Appended, Change, Lease
from orchestrator.lifecycle import TRANSITIONS, ExecutionState, IllegalTransition, Trigger
from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server
from tests.contracts.redis_store import Store, lines

T = TypeVar("T")
ID = "exe_m"
LEASE_S = 15.0
S = ExecutionState
ENDED = Outcome(OutcomeKind.FAILED, Reason.EXIT_CODE, exit_code=1)


@dataclass
class Worker:
    """What one claimer believes. It may be wrong: then it is a zombie, and must be refused."""

    lease: Lease
    own: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)  # those of its appends that were taken


@dataclass
class Model:
    """What must be true, in a few lines."""

    state: ExecutionState = S.QUEUED
    epoch: int = 0
    owned: bool = False
    lapses_at: float = 0.0
    now: float = 0.0
    attempt: int = 0
    src: int = 0  # of this attempt
    frames: list[tuple[int, int]] = field(default_factory=list)  # (attempt, src) in the order of the history
    messages: list[str] = field(default_factory=list)
    cancel: bool = False
    not_before: float = 0.0

    @property
    def due(self) -> bool:
        if self.state is S.FINISHED or (self.state is S.HIBERNATED and not self.owned):
            return False
        return self.now >= (self.lapses_at if self.owned else self.not_before)


class Protocol(RuleBasedStateMachine):
    """Three workers, of which any may be a zombie, on one execution."""

    url: ClassVar[str]
    fenced: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.store = self.wait(self.open())
        self.model = Model()
        self.workers: dict[str, Worker] = {}

    async def open(self) -> Store:
        server, keys = Server(self.url), Keys(f"m{uuid.uuid4().hex[:10]}")
        return Store(
            server,
            keys,
            RedisExecutions(server, keys, fenced=self.fenced),
            RedisHistory(server, keys, fenced=self.fenced),
        )

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        async def close() -> None:
            await self.store.executions.remove(ID) if self.model.state is S.FINISHED else None
            await self.store.history.aclose()
            await self.store.server.aclose()

        try:
            self.wait(close())
        finally:
            self.loop.close()

    # Steps -------------------------------------------------------------------------------------------------------

    @initialize()
    def submit(self) -> None:
        for _ in range(2):  # the second is a lost reply
            self.wait(self.store.executions.submit(Spec(limits=Limits()), execution_id=ID))

    @rule(owner=st.sampled_from("abc"), back=st.integers(0, 2))
    def as_meant(self, owner: str, back: int) -> None:
        """The next thing that should happen, so that runs get far: a claim, the start, more frames."""
        model = self.model
        owners = [worker for worker in self.workers.values() if self.owns(worker)]
        if not owners:
            self.claim(owner)
        elif model.state is S.QUEUED:
            self.transition(owners[0], Trigger.CLAIMED, True)
        elif model.state is S.STARTING:
            self.transition(owners[0], Trigger.HARNESS_STARTED, True)
        else:
            self.frames(owners[0], max(1, model.src + 1 - back), 1)

    @rule(owner=st.sampled_from("abc"))
    def claims(self, owner: str) -> None:
        self.claim(owner)

    def claim(self, owner: str) -> None:
        model = self.model
        got = self.wait(self.store.executions.claim(owner, "h", lease_s=LEASE_S))
        if not model.due:
            assert not isinstance(got, Claim), f"claimed what is not due: {got}, {model}"
            return
        if model.state is S.QUEUED and model.cancel:
            assert not isinstance(got, Claim)
            model.state, model.owned = S.FINISHED, False
            return
        assert isinstance(got, Claim), f"what is due was not handed out: {got}, {model}"
        model.epoch += 1
        model.owned, model.lapses_at = True, model.now + LEASE_S
        assert got.lease.epoch == model.epoch
        assert (got.execution.state, got.execution.src, got.execution.attempt) == (
            model.state,
            model.src,
            model.attempt,
        )
        self.workers[owner] = Worker(got.lease)

    @rule(seconds=st.sampled_from((1.0, 4.0, 8.0, 16.0)))
    def time_passes(self, seconds: float) -> None:
        self.wait(self.store.pass_time(seconds))
        self.model.now += seconds

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        worker = self.pick(data)
        try:
            self.wait(self.store.executions.renew(worker.lease))
        except Fenced:
            assert not self.owns(worker), "the owner's renewal was refused"
            return
        assert self.owns(worker), f"a zombie renewed: {worker.lease}, {self.model}"
        self.model.lapses_at = self.model.now + LEASE_S

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        worker = self.pick(data)
        try:
            self.wait(self.store.executions.release(worker.lease))
        except Fenced:
            assert worker.lease.epoch != self.model.epoch
            return
        assert worker.lease.epoch == self.model.epoch, "a zombie gave up what is another's"
        if self.model.owned:
            self.model.owned, self.model.not_before = False, self.model.now
            if self.model.cancel and self.model.state is S.QUEUED:
                self.model.state = S.FINISHED

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), back=st.integers(0, 4), ahead=st.integers(0, 4), skip=st.sampled_from((0, 0, 0, 0, 2)))
    def any_frames(self, data: st.DataObject, back: int, ahead: int, skip: int) -> None:
        """From a little before what it believes is recorded, or beyond it."""
        self.frames(self.pick(data), max(1, self.model.src + 1 - back) + skip, ahead)

    def frames(self, worker: Worker, first: int, ahead: int) -> None:
        model = self.model
        spooled = lines(first, first + ahead)
        try:
            self.append(worker, attempt=model.attempt, spooled=spooled)
        except Resend as asked:
            assert first > model.src + 1
            assert asked.src == model.src + 1
            return
        except (Fenced, Closed):
            assert not self.owns(worker), "the owner's frames were refused"
            return
        if first + ahead > model.src:
            assert self.owns(worker), f"a zombie's frames were taken: {worker.lease}, {model}"
            model.frames += [(model.attempt, src) for src in range(model.src + 1, first + ahead + 1)]
            model.src = first + ahead

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), wild=st.integers(0, 9), expects=st.booleans())
    def any_transition(self, data: st.DataObject, wild: int, expects: bool) -> None:
        """Mostly one that the state knows and that is not the end."""
        before = self.model.state
        known = [trigger for state, trigger in TRANSITIONS if state is before]
        lasting = [t for t in known if TRANSITIONS[before, t] not in (S.STOPPING, S.FINISHED)]
        choice = lasting if wild > 2 and lasting else known if wild and known else list(Trigger)
        self.transition(self.pick(data), data.draw(st.sampled_from(choice)), expects)

    def transition(self, worker: Worker, trigger: Trigger, expects: bool) -> None:
        model = self.model
        before = model.state
        to = TRANSITIONS.get((before, trigger))
        new = trigger is Trigger.CLAIMED
        change = Change(
            trigger=trigger,
            expects=before if expects else None,
            outcome=ENDED if to is S.FINISHED else None,
            attempt=model.attempt + 1 if new else None,
            sandbox_id=f"sbx_{model.attempt + 1}" if new else None,
            host="h" if new else None,
            seen=len(model.messages) if to is S.HIBERNATED and expects else None,
        )
        worker.own += 1
        try:
            self.append(worker, attempt=model.attempt, own=worker.own, change=change)
        except (Fenced, Closed):
            worker.own -= 1
            assert not self.owns(worker), "the owner's transition was refused"
            return
        except IllegalTransition:
            worker.own -= 1
            assert to is None
            return
        assert to is not None, f"{before} took {trigger}"
        assert self.owns(worker), f"a zombie moved it: {worker.lease}, {model}"
        model.state = to
        if new:
            model.attempt += 1
            model.src = 0
        if to in (S.QUEUED, S.HIBERNATED, S.FINISHED):
            model.owned, model.not_before = False, model.now
            if model.cancel and to is not S.FINISHED:
                model.state = S.FINISHED

    @precondition(lambda self: any(worker.calls for worker in self.workers.values()))
    @rule(data=st.data())
    def a_call_again(self, data: st.DataObject) -> None:
        """Whatever was taken once may come again, at any later time: its reply may have been lost."""
        able = sorted(owner for owner, worker in self.workers.items() if worker.calls)
        worker = self.workers[data.draw(st.sampled_from(able))]
        call = data.draw(st.sampled_from(worker.calls))
        try:
            done: Appended = self.wait(self.store.history.append(worker.lease, **call))
        except Fenced:
            assert not self.owns(worker)
        except Closed:
            assert self.model.state is S.FINISHED
        except Conflict:
            assert call["attempt"] > self.model.attempt
        else:
            assert done.repeated, f"taken twice: {call}"

    @rule(number=st.integers(0, 5))
    def send(self, number: int) -> None:
        model, name = self.model, f"m{number}"
        try:
            sent = self.wait(self.store.history.send(ID, name, name.encode()))
        except Conflict:
            assert model.state in (S.FINISHED, S.STOPPING)
            assert name not in model.messages
            return
        assert sent.repeated == (name in model.messages)
        if not sent.repeated:
            model.messages.append(name)
            if model.state is S.HIBERNATED and not model.owned:
                model.state, model.not_before = S.QUEUED, model.now
        assert sent.n == model.messages.index(name) + 1

    @rule(sure=st.integers(0, 15))
    def want_cancel(self, sure: int) -> None:
        model = self.model
        if sure < 15 and not model.cancel:  # rarely: little can happen after it
            return
        try:
            self.wait(self.store.executions.want(ID, CancelWant(f"c{int(model.cancel)}", 5.0)))
        except Conflict:
            assert model.state is S.FINISHED
            return
        model.cancel = True
        if model.state in (S.QUEUED, S.HIBERNATED) and not model.owned:
            model.state = S.FINISHED

    # What must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def the_record_is_the_models(self) -> None:
        execution = self.wait(self.store.executions.get(ID))
        model = self.model
        assert (execution.state, execution.epoch, execution.attempt, execution.src) == (
            model.state,
            model.epoch,
            model.attempt,
            model.src,
        )
        assert (execution.owner is not None) == model.owned
        assert execution.inbox_tail == len(model.messages)

    @invariant()
    def the_history_is_whole(self) -> None:
        async def read() -> tuple[list[Event], int]:
            events: list[Event] = []
            cursor = Cursor()
            while True:
                page = await self.store.history.read(ID, cursor, limit=500)
                events += page.events
                cursor = page.next
                if cursor.seq >= page.tail:
                    return events, await self.store.server.ask("XLEN", self.store.keys.history(ID))

        events, length = self.wait(read())
        model = self.model
        over = model.state is S.FINISHED
        assert [e.seq for e in events] == list(range(1, len(events) + 1)), "a gap or a repeat in seq"
        assert length == len(events) + over, "something lies after the end, or the end marker is missing"
        endings = [e.seq for e in events if e.type == "execution.finished"]
        assert endings == ([len(events)] if over else []), "an ending too many, or not at the end"
        frames = [(e.attempt, int((e.body or b"").split()[1])) for e in events if e.type == "output"]
        assert frames == model.frames, "frames lost, repeated or out of order"
        assert [e.data["id"] for e in events if e.type == "message.accepted"] == model.messages
        moves = [(e.data["from"], e.data["to"]) for e in events if e.type == "execution.state"]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(moves)), "a transition without its event"
        assert (moves[-1][1] if moves else "QUEUED") == model.state

    @invariant()
    def the_inbox_is_whole(self) -> None:
        inbox = self.wait(self.store.history.inbox(ID, 0, limit=100))
        assert [(m.n, m.id) for m in inbox] == list(enumerate(self.model.messages, 1))

    # ----------------------------------------------------------------------------------------------------------------

    def pick(self, data: st.DataObject) -> Worker:
        return self.workers[data.draw(st.sampled_from(sorted(self.workers)))]

    def owns(self, worker: Worker) -> bool:
        return self.model.owned and worker.lease.epoch == self.model.epoch

    def append(self, worker: Worker, **call: Any) -> None:
        self.wait(self.store.history.append(worker.lease, **call))
        worker.calls.append(call)


def check(url: str, runs: int, *, fenced: bool = True) -> None:
    machine = type("Protocol", (Protocol,), {"url": url, "fenced": fenced})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=60,
            deadline=None,
            database=None,
            # Random when it searches (a fixed seed would look at the same runs for ever), no shrinking where the
            # first failure is the answer.
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
    with pytest.raises(AssertionError, match=r"zombie|twice|repeated|gap|lost|ending|after the end|src|model"):
        check(redis_url, 300, fenced=False)
