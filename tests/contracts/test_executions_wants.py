"""The contract of `Executions.want`, and of what the store ends or wakes by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.errors import BadInput, Conflict, NotFound
from orchestrator.events import Cursor
from orchestrator.execution import (
    Budget,
    BudgetWant,
    CancelWant,
    Egress,
    EgressWant,
    InterruptWant,
    Limits,
    OutcomeKind,
    PauseWant,
    Reason,
    Resources,
    ResourcesWant,
)
from orchestrator.executions import Nothing, Want
from orchestrator.history import Change
from orchestrator.lifecycle import ExecutionState, Trigger
from tests.contracts.redis_store import Store, lines


async def types(store: Store, execution_id: str = "exe_a") -> list[str]:
    return [e.type for e in (await store.history.read(execution_id, Cursor())).events]


class TestCancel:
    async def test_what_waits_ends_at_once(self, store: Store) -> None:
        await store.submitted()
        after = await store.executions.want("exe_a", CancelWant("c1", 10, "not needed"))
        assert after.state is ExecutionState.FINISHED
        assert after.outcome is not None
        assert (after.outcome.kind, after.outcome.reason) == (OutcomeKind.CANCELLED, Reason.CANCELLED)
        assert after.outcome.message == "not needed"
        assert (await types(store))[-3:] == ["execution.wanted", "execution.state", "execution.finished"]
        assert isinstance(await store.executions.claim("w1", "h1", lease_s=15), Nothing)

    async def test_what_runs_is_told(self, store: Store) -> None:
        await store.running()
        after = await store.executions.want("exe_a", CancelWant("c1", 10))
        assert (after.state, after.wants.cancel) == (ExecutionState.RUNNING, CancelWant("c1", 10))
        assert await store.executions.wait("w1", shared=False, timeout_s=30) == ("exe_a",)

    async def test_the_first_wins_and_a_later_one_only_shortens(self, store: Store) -> None:
        await store.running()
        await store.executions.want("exe_a", CancelWant("c1", 10, "first"))
        longer = await store.executions.want("exe_a", CancelWant("c2", 20, "second"))
        assert longer.wants.cancel == CancelWant("c1", 10, "first")
        shorter = await store.executions.want("exe_a", CancelWant("c3", 0, "third"))
        assert shorter.wants.cancel == CancelWant("c1", 0, "first")

    async def test_the_same_id_again_changes_nothing(self, store: Store) -> None:
        await store.submitted()
        first = await store.executions.want("exe_a", CancelWant("c1", 10))
        again = await store.executions.want("exe_a", CancelWant("c1", 10))
        assert again == first
        with pytest.raises(Conflict):
            await store.executions.want("exe_a", CancelWant("c2", 10))

    async def test_one_claimed_and_not_placed_is_its_owners_to_end(self, store: Store) -> None:
        await store.submitted()
        lease = (await store.claimed()).lease
        assert (await store.executions.want("exe_a", CancelWant("c1", 10))).state is ExecutionState.QUEUED
        await store.pass_time(16)  # its owner died: the next claim finds nothing to stop
        assert isinstance(await store.executions.claim("w2", "h1", lease_s=15), Nothing)
        assert await store.state("exe_a") is ExecutionState.FINISHED
        assert lease.epoch == (await store.executions.get("exe_a")).epoch

    async def test_one_that_goes_back_into_the_queue_ends_there(self, store: Store) -> None:
        lease = await store.running()
        await store.executions.want("exe_a", CancelWant("c1", 10))
        done = await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1)
        assert done.state is ExecutionState.FINISHED

    async def test_unknown(self, store: Store) -> None:
        with pytest.raises(NotFound):
            await store.executions.want("exe_none", CancelWant("c1", 1))
        with pytest.raises(BadInput):
            await store.executions.want("exe_none", CancelWant("", 1))


class TestDeadline:
    async def test_what_waits_ends_when_its_time_is_over(self, store: Store) -> None:
        await store.submitted(limits=Limits(deadline_s=60))
        claim = await store.claimed()
        assert claim.deadline_in_s is not None
        assert 50 < claim.deadline_in_s <= 60
        await store.executions.release(claim.lease)
        await store.pass_time(61)
        assert isinstance(await store.executions.claim("w1", "h1", lease_s=15), Nothing)
        ended = await store.executions.get("exe_a")
        assert ended.outcome is not None
        assert (ended.outcome.kind, ended.outcome.reason) == (OutcomeKind.TIMED_OUT, Reason.DEADLINE)

    async def test_what_sleeps_ends_when_its_time_is_over(self, store: Store) -> None:
        lease = await store.running(limits=Limits(deadline_s=60))
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0)
        assert await store.state("exe_a") is ExecutionState.HIBERNATED
        await store.pass_time(61)
        assert isinstance(await store.executions.claim("w1", "h1", lease_s=15), Nothing)
        assert await store.state("exe_a") is ExecutionState.FINISHED


class TestPause:
    async def test_the_last_wish_stands_until_its_receipt(self, store: Store) -> None:
        lease = await store.running()
        await store.executions.want("exe_a", PauseWant("p1", True))
        after = await store.executions.want("exe_a", PauseWant("p2", False))
        assert after.wants.pause == PauseWant("p2", False)
        await store.history.append(lease, attempt=1, own=3, change=Change(done_wants=("p1",)))
        assert (await store.executions.get("exe_a")).wants.pause == PauseWant("p2", False)
        await store.history.append(lease, attempt=1, own=4, change=Change(done_wants=("p2",)))
        assert (await store.executions.get("exe_a")).wants.pause is None

    async def test_only_what_runs(self, store: Store) -> None:
        await store.submitted()
        with pytest.raises(Conflict) as refused:
            await store.executions.want("exe_a", PauseWant("p1", True))
        assert refused.value.data["remedy"]

    async def test_resume_wakes_what_sleeps(self, store: Store) -> None:
        lease = await store.running()
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0)
        after = await store.executions.want("exe_a", PauseWant("p1", False))
        assert after.state is ExecutionState.QUEUED
        assert (await store.claimed()).execution.id == "exe_a"


class TestResources:
    async def test_the_last_one_wins_per_field(self, store: Store) -> None:
        lease = await store.running()
        await store.executions.want("exe_a", ResourcesWant("r1", cpus=2.5))
        after = await store.executions.want("exe_a", ResourcesWant("r2", memory_bytes=3 << 30))
        assert after.wants.resources == ResourcesWant("r2", 2.5, 3 << 30)
        now = Resources(cpus=2.5, memory_bytes=3 << 30)
        await store.history.append(lease, attempt=1, own=3, change=Change(resources=now, done_wants=("r2",)))
        done = await store.executions.get("exe_a")
        assert (done.resources, done.wants.resources) == (now, None)


class TestInterrupt:
    async def test_many_wait_for_their_receipts(self, store: Store) -> None:
        lease = await store.running()
        for name in ("i1", "i2", "i1"):
            after = await store.executions.want("exe_a", InterruptWant(name, 1))
        assert after.wants.interrupts == (InterruptWant("i1", 1), InterruptWant("i2", 1))
        await store.history.append(lease, attempt=1, own=3, change=Change(done_wants=("i1",)))
        assert (await store.executions.get("exe_a")).wants.interrupts == (InterruptWant("i2", 1),)

    async def test_it_expires_with_its_attempt(self, store: Store) -> None:
        lease = await store.running()
        await store.executions.want("exe_a", InterruptWant("i1", 1))
        await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1)
        assert (await store.executions.get("exe_a")).wants.interrupts == ()
        with pytest.raises(Conflict):
            await store.executions.want("exe_a", InterruptWant("i2", 1))

    async def test_another_attempts_interrupt_is_refused(self, store: Store) -> None:
        lease = await store.running()
        await store.history.append(lease, attempt=1, spooled=lines(1, 1))
        with pytest.raises(Conflict) as refused:
            await store.executions.want("exe_a", InterruptWant("i1", 2))
        assert refused.value.data["attempt"] == 1


EGRESS = EgressWant("e1", Egress(("example.org", "*.example.net:8443")))
BUDGET = BudgetWant("b1", Budget(micros=5_000_000, tokens=10**12, on_exceeded="wait"))
AT_ONCE = pytest.mark.parametrize("want", [EGRESS, BUDGET], ids=["egress", "budget"])


def stands(want: Want) -> dict[str, object]:
    """What the record says of it."""
    return {"egress": want.egress} if isinstance(want, EgressWant) else {"budget": want.budget}  # type: ignore[union-attr]


class TestAtOnce:
    @AT_ONCE
    async def test_it_stands_with_its_one_event_and_the_owner_is_rung(self, store: Store, want: Want) -> None:
        await store.running()
        before = await store.executions.get("exe_a")
        after = await store.executions.want("exe_a", want)
        assert after == replace(before, tail=before.tail + 1, **stands(want))  # type: ignore[arg-type]
        assert after == await store.executions.get("exe_a")
        assert after.spec == before.spec
        (event,) = (await store.history.read("exe_a", Cursor(1, before.tail))).events
        if isinstance(want, EgressWant):
            assert (event.type, event.data) == ("egress.changed", {"id": "e1", "allow": list(want.egress.allow)})
        else:
            figures = {"id": "b1", "micros": 5_000_000, "tokens": 10**12, "on_exceeded": "wait"}
            assert (event.type, event.data) == ("budget.changed", figures)
        assert await store.executions.wait("w1", shared=False, timeout_s=30) == ("exe_a",)

    @AT_ONCE
    async def test_the_same_id_again_changes_nothing(self, store: Store, want: Want) -> None:
        await store.running()
        first = await store.executions.want("exe_a", want)
        assert await store.executions.want("exe_a", want) == first
        other = EgressWant("e2", Egress()) if isinstance(want, EgressWant) else BudgetWant("b2", Budget())
        last = await store.executions.want("exe_a", other)
        assert stands(other).items() <= {"egress": last.egress, "budget": last.budget}.items()
        assert await store.executions.want("exe_a", want) == last

    @AT_ONCE
    async def test_what_waits_or_sleeps_takes_it_and_goes_on_waiting(self, store: Store, want: Want) -> None:
        await store.submitted()
        assert (await store.executions.want("exe_a", want)).state is ExecutionState.QUEUED
        lease = (await store.claimed()).lease
        await store.place(lease, own=1)
        await store.move(lease, Trigger.HARNESS_STARTED, own=2)
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0)
        after = await store.executions.want("exe_a", replace(want, id="x"))
        assert after.state is ExecutionState.HIBERNATED
        assert stands(want).items() <= {"egress": after.egress, "budget": after.budget}.items()

    @AT_ONCE
    async def test_not_when_it_is_ending(self, store: Store, want: Want) -> None:
        lease = await store.running()
        await store.move(lease, Trigger.EXITED, own=3)
        with pytest.raises(Conflict):
            await store.executions.want("exe_a", want)

    async def test_until_then_it_is_as_submitted(self, store: Store) -> None:
        limits = Limits(budget=Budget(micros=7))
        await store.submitted(egress=Egress(("example.org",)), limits=limits)
        execution = await store.executions.get("exe_a")
        assert (execution.egress, execution.budget) == (Egress(("example.org",)), Budget(micros=7))
        for want in (
            EgressWant("e1", Egress()),
            BudgetWant("b1", Budget()),
        ):  # nothing, and no limit, can be wished for
            await store.executions.want("exe_a", want)
        execution = await store.executions.get("exe_a")
        assert (execution.egress, execution.budget) == (Egress(), Budget())
        assert (execution.spec.egress, execution.spec.limits) == (Egress(("example.org",)), limits)
