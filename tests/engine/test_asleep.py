"""What keeps an execution awake that nobody sees from inside, what goes on while it sleeps, and many at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from orchestrator import events
from orchestrator.execution import Execution, Limits, OutcomeKind, Reason, Resources, SnapshotPolicy
from orchestrator.lifecycle import ExecutionState
from orchestrator.link import ViewerLink
from orchestrator.snapshots import Origin
from tests.engine.stage import Stage, kinds, printed
from tests.engine.test_hibernate import begin, file, ledger, sleep
from tests.engine.test_snapshots import cut

pytestmark = pytest.mark.root
S = ExecutionState
IDLE_S = 0.6
NEVER = SnapshotPolicy(at_end=False)
SMALL = Resources(memory_bytes=32 << 20)


def idle(event: events.Event) -> bool:
    return event.data.get("trigger") == "idle"


async def another_sleeps(here: Stage) -> None:
    """Twice as long as it may be idle: so says one that began now, and is idle twice."""
    other = await begin(here, limits=Limits(idle_timeout_s=IDLE_S))
    await here.until(other, lambda record: record.state is S.HIBERNATED)
    await here.send(other, "again", "again")
    await here.until(other, lambda record: record.state is S.HIBERNATED and record.attempt == 2)


async def awake(here: Stage, execution: Execution) -> None:
    record = await here.parts.executions.get(execution.id)
    assert (record.state, record.attempt, record.frozen) == (S.RUNNING, 1, False)


async def test_a_model_call_under_way_keeps_it_awake(here: Stage) -> None:
    here.work(lease_s=30.0)
    asked = await begin(here, limits=Limits(idle_timeout_s=IDLE_S))
    (gateway,) = [one for one in here.gateways.opened if one.execution.id == asked.id]
    gateway.under_way = asyncio.get_running_loop().create_future()
    await here.until(asked, lambda record: not record.frozen)
    await another_sleeps(here)
    await awake(here, asked)
    gateway.under_way.set_result(None)
    await here.saw(asked, idle)


async def test_a_command_beside_it_keeps_it_awake(here: Stage) -> None:
    """A terminal is one, whether anybody types or not."""
    here.work(lease_s=30.0)
    asked = await begin(here, limits=Limits(idle_timeout_s=IDLE_S))
    record = await here.parts.executions.get(asked.id)
    async with await ViewerLink.open(await here.parts.driver.connect(record.sandbox_id or "")) as line:
        terminal = line.exec(["cat"], stdin=True)
        await anext(terminal)  # it has begun, thawed where it stood still
        await here.until(asked, lambda one: not one.frozen)
        await another_sleeps(here)
        await awake(here, asked)
        await terminal.aclose()
    await here.saw(asked, idle)


async def test_the_deadline_goes_on(here: Stage) -> None:
    """It ends without waking: no other attempt, and its files are as it left them."""
    worker = here.work(lease_s=30.0)
    asked = await begin(here, limits=Limits(deadline_s=4.0))
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    slept = await sleep(here, asked)
    await here.idle(worker)
    assert slept.deadline_at is not None
    record = await here.ended(asked)
    assert record.outcome is not None and record.finished_at is not None
    assert (record.outcome.kind, record.outcome.reason) == (OutcomeKind.TIMED_OUT, Reason.DEADLINE)
    assert record.attempt == 1 and record.finished_at >= slept.deadline_at - timedelta(milliseconds=100)
    assert [e.data["to"] for e in await here.history(asked) if e.type == events.STATE][-2:] == [
        S.HIBERNATED,
        S.FINISHED,
    ]
    assert file(here, record, "log") == b"one\n"


async def test_a_deadline_is_the_same_moment_after_waking(here: Stage) -> None:
    here.work(lease_s=30.0)
    asked = await begin(here, limits=Limits(deadline_s=6.0, grace_s=0.1))
    before = (await here.parts.executions.get(asked.id)).deadline_at
    await sleep(here, asked)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.TIMED_OUT
    assert record.attempt == 2 and record.deadline_at is not None and before is not None
    assert abs(record.deadline_at - before) < timedelta(milliseconds=100)


async def test_cancelled_in_its_sleep_it_does_not_wake(here: Stage) -> None:
    worker = here.work(lease_s=30.0)
    asked = await begin(here)
    await sleep(here, asked)
    await here.idle(worker)
    await here.cancel(asked)
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.CANCELLED and record.attempt == 1


async def test_its_idle_time_begins_anew_with_each_attempt(here: Stage) -> None:
    """And a sleep is no failure, and costs no budget."""
    here.work(lease_s=30.0)
    asked = await begin(here, limits=Limits(idle_timeout_s=IDLE_S))
    await here.saw(asked, idle)
    await here.until(asked, lambda record: record.state is S.HIBERNATED)
    await here.send(asked, "1", "one")
    await here.until(asked, lambda record: record.state is S.HIBERNATED and record.attempt == 2)
    history = await here.history(asked)
    (up,) = [event for event in history if printed("up 2")(event)]
    second = [event for event in history if idle(event)][1]
    assert second.time - up.time >= timedelta(seconds=IDLE_S * 0.9)
    record = await here.parts.executions.get(asked.id)
    assert record.failures == 0 and record.spend == asked.spend


@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.full)])
async def test_many_forks_at_once(everywhere: Stage, count: int) -> None:
    """Of one that runs, from one cut: each goes its own way, and the first as if there were none."""
    here = everywhere
    here.work(lease_s=30.0)
    asked = await begin(here, resources=SMALL)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    taken = await cut(here, asked)
    origin = Origin(asked.id, taken.id, taken.cut.seq)
    submit = here.submit
    forks = await asyncio.gather(
        *(submit(harness="ledger", declared=ledger(), origin=origin, snapshots=NEVER) for _ in range(count))
    )
    await asyncio.gather(*(here.send(fork, "f", f"fork {n}") for n, fork in enumerate(forks)))
    await asyncio.gather(*(here.saw(fork, printed(f"got fork {n} as 2")) for n, fork in enumerate(forks)))
    await here.send(asked, "2", "two")
    await here.saw(asked, printed("got two as 2"))
    for n, fork in enumerate(forks):
        record = await here.parts.executions.get(fork.id)
        assert file(here, record, "log") == f"one\nfork {n}\n".encode()
        assert file(here, record, "starts") == b"attempt 1 resumed 0\nattempt 1 resumed 1\n"
    record = await here.parts.executions.get(asked.id)
    assert record.attempt == 1 and file(here, record, "log") == b"one\ntwo\n"
    assert kinds(await here.history(asked)).count(events.SNAPSHOT_CREATED) == 1
    assert len(await here.parts.snapshots.family(asked.id)) == count + 1
