"""The gateway as the engine keeps it: open before the harness begins, told what changes, heard in the history, closed
at every end; and what a budget that was exceeded, and a harness that was killed, come to."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.calls import Asked, ModelUsage, OverBudget
from orchestrator.errors import BadInput, Fenced, StoreUnavailable
from orchestrator.events import Entry
from orchestrator.execution import (
    Budget,
    BudgetWant,
    Egress,
    EgressWant,
    Execution,
    Limits,
    OutcomeKind,
    Reason,
    RetryPolicy,
)
from orchestrator.executions import EGRESS_SENT
from orchestrator.gateways import OUTLET_PORT
from orchestrator.lifecycle import ExecutionState
from tests.engine.stage import Opened, Stage, kinds, printed, stdout

pytestmark = pytest.mark.root
S = ExecutionState
DEAR = Asked("digest", "", reserve=ModelUsage(cost_micros=5_000), if_cut=ModelUsage(cost_micros=5_000))


async def opened(here: Stage, count: int = 1) -> Opened:
    """Wait for so many of them; the last."""
    while len(here.gateways.opened) < count:
        await asyncio.sleep(0.01)
    return here.gateways.opened[count - 1]


async def says(at: Path) -> bytes:
    reader, writer = await asyncio.open_unix_connection(at)
    said = await reader.read()
    writer.close()
    await writer.wait_closed()
    return said


async def refused(here: Stage, gateway: Opened) -> None:
    """A model call that the budget does not allow, as the gateway asks for it."""
    answer = await here.calls.begin(gateway.lease, gateway.execution.attempt, DEAR)
    assert isinstance(answer, OverBudget)


def open_sockets() -> int:
    """Every open socket of this process: those to the store are there from the first execution on."""
    count = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            count += str(fd.readlink()).startswith("socket:")
    return count


def at(here: Stage, record: Execution) -> Path:
    assert record.sandbox_id is not None
    return here.parts.workspaces.slot(record.sandbox_id).gateway


async def test_it_listens_before_the_harness_begins(here: Stage) -> None:
    here.work()
    asked = await here.bash("echo $CARREL_GATEWAY $MODEL; read line", model="m1", env={"CARREL_GATEWAY": "forged"})
    await here.saw(asked, lambda event: event.data.get("to") == S.RUNNING)
    [gateway] = here.gateways.opened
    record = await here.saw_record(asked, printed("here m1\n"))
    assert (gateway.lease.epoch, gateway.execution.attempt, gateway.execution.sandbox_id) == (1, 1, record.sandbox_id)
    assert gateway.held() and await says(at(here, record)) == b"1\n"
    await here.send(asked, "m", "go")
    await here.ended(asked)
    assert gateway.closed and gateway.graces_s == [0.0]


async def test_a_start_that_fails_after_it_was_opened_leaves_no_line_and_no_gateway(here: Stage) -> None:
    worker = here.work()
    await here.ended(await here.bash("true"))
    await here.idle(worker)
    before = open_sockets()
    for _ in range(3):
        here.gateways.untold.append(BadInput("no such model", field="model"))
        record = await here.ended(await here.bash("true"))
        assert record.outcome is not None and record.outcome.reason is Reason.BAD_CONFIGURATION
    await here.idle(worker)
    assert open_sockets() == before
    assert len(here.gateways.opened) == 4 and all(gateway.closed for gateway in here.gateways.opened)


async def test_what_it_tells_is_in_the_history_when_it_returns(here: Stage) -> None:
    here.work()
    asked = await here.bash("read line")
    gateway = await opened(here)
    await asyncio.gather(*(gateway.tell(Entry(events.EGRESS_REFUSED, {"host": f"h{n}"})) for n in range(600)))
    told = [event.data["host"] for event in await here.history(asked) if event.type == events.EGRESS_REFUSED]
    assert told == [f"h{n}" for n in range(600)]
    await here.cancel(asked, 0)
    await here.ended(asked)
    with pytest.raises(Fenced):
        await gateway.tell(Entry(events.EGRESS_REFUSED, {"host": "late"}))


async def test_what_gateways_count_is_told_once(here: Stage) -> None:
    here.gateways.sent_bytes = 5
    here.work(host_lost_after_s=0.06)
    while (await here.parts.executions.counters())[EGRESS_SENT] != 5:
        await asyncio.sleep(0.01)
    here.gateways.sent_bytes = 9
    while (told := (await here.parts.executions.counters())[EGRESS_SENT]) != 9:
        assert told == 5, "told twice"
        await asyncio.sleep(0.01)


async def test_it_hears_what_the_record_says_now(here: Stage) -> None:
    here.work(look_s=3600.0)
    asked = await here.bash("read line", limits=Limits(budget=Budget(tokens=1)))
    gateway = await opened(here)
    assert gateway.execution.budget.tokens == 1
    await here.parts.executions.want(asked.id, EgressWant("e", Egress(("a.example",))))
    await here.parts.executions.want(asked.id, BudgetWant("b", Budget(micros=7)))
    while not (gateway.updates and gateway.updates[-1].budget.micros == 7):
        await asyncio.sleep(0.01)
    assert gateway.updates[-1].egress.allow == ("a.example",)
    await here.cancel(asked, 0)
    await here.ended(asked)


async def test_the_next_owner_opens_its_own_in_its_place(here: Stage) -> None:
    first = here.work(lease_s=1.0)
    asked = await here.bash("echo up; read line")
    record = await here.saw_record(asked, printed("up"))
    assert await says(at(here, record)) == b"1\n"
    await here.stop(first)
    here.work()
    second = await opened(here, 2)
    assert (second.lease.epoch, second.execution.attempt) == (2, 1)
    assert await says(at(here, record)) == b"2\n"
    assert here.gateways.opened[0].closed and not here.gateways.opened[0].held()
    with pytest.raises(Fenced):
        await here.gateways.opened[0].tell(Entry(events.EGRESS_REFUSED, {}))
    await here.send(asked, "m", "go")
    await here.ended(asked)


async def test_a_drain_waits_for_calls_under_way(here: Stage) -> None:
    worker = here.work(lease_s=3600, drain_grace_s=3600.0)
    asked = await here.bash("echo up; read line; echo $line")
    await here.saw(asked, printed("up"))
    gateway = await opened(here)
    gateway.under_way = asyncio.get_running_loop().create_future()
    draining = asyncio.create_task(here.drain(worker))
    while not gateway.graces_s:
        await asyncio.sleep(0.01)
    await gateway.tell(Entry(events.EGRESS_REFUSED, {"host": "while it closes"}))
    await here.send(asked, "m", "still")
    await here.saw(asked, lambda event: event.type == events.MESSAGE_DELIVERED)  # the work goes on meanwhile
    assert not draining.done()
    gateway.under_way.set_result(None)
    await draining
    record = await here.parts.executions.get(asked.id)
    assert record.owner is None or record.ended
    if not record.ended:
        here.work()
    await here.ended(asked)
    assert events.EGRESS_REFUSED in kinds(await here.history(asked))
    assert stdout(await here.history(asked)) == b"up\nstill\n"


async def test_work_does_not_wait_for_one_that_cannot_be_opened(here: Stage) -> None:
    here.gateways.fail = [StoreUnavailable("away"), OSError("no room"), *[StoreUnavailable("away")] * 3]
    here.work()
    asked = await here.bash("echo up; read line")
    await here.saw(asked, printed("up"))
    gateway = await opened(here)
    assert not here.gateways.fail
    await gateway.tell(Entry(events.EGRESS_REFUSED, {}))
    await here.send(asked, "m", "go")
    assert (await here.ended(asked)).outcome is not None


async def test_an_end_does_not_wait_for_one_that_cannot_be_opened(here: Stage) -> None:
    here.gateways.fail = [OSError("no room")] * 1000
    here.work()
    asked = await here.bash("echo done")
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED


async def test_init_is_told_to_open_its_outlet(here: Stage) -> None:
    """As far as it can be seen without one: the field is taken, or passed over."""
    assert OUTLET_PORT == 7411
    here.work()
    asked = await here.bash("true")
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED


# -- the budget --------------------------------------------------------------------------------------------------------

SMALL = Budget(micros=1_000)


async def test_over_budget_it_is_asked_to_end_after_its_grace(here: Stage) -> None:
    here.work(look_s=3600.0)
    asked = await here.bash(
        "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.02; done", limits=Limits(grace_s=0.3, budget=SMALL)
    )
    await here.saw(asked, printed("up"))
    await refused(here, await opened(here))
    record = await here.ended(asked)
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.reason, record.outcome.exit_code) == (
        OutcomeKind.FAILED,
        Reason.BUDGET,
        3,
    )
    assert "5000 needed" in record.outcome.message and "limit is 1000" in record.outcome.message
    told = await here.history(asked)
    assert stdout(told) == b"up\nbye\n"
    assert [e.data["trigger"] for e in told if e.type == events.STATE][-2:] == ["budget", "stopped"]


async def test_over_budget_it_may_end_by_itself_and_has_failed_all_the_same(here: Stage) -> None:
    here.work()
    asked = await here.bash("read line; exit 0", limits=Limits(grace_s=3600.0, budget=SMALL))
    await refused(here, await opened(here))
    await here.send(asked, "m", "go")
    record = await here.ended(asked)
    assert record.outcome is not None
    assert (record.outcome.reason, record.outcome.exit_code) == (Reason.BUDGET, 0)


async def test_a_raise_in_time_takes_it_back(here: Stage) -> None:
    here.work()
    asked = await here.bash("echo up; read line; echo $line", limits=Limits(grace_s=3600.0, budget=SMALL))
    await here.saw(asked, printed("up"))
    await refused(here, await opened(here))
    await here.until(asked, lambda record: record.over_budget != "")
    await here.parts.executions.want(asked.id, BudgetWant("more", Budget(micros=1_000_000)))
    await here.send(asked, "m", "on")
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED


async def test_with_wait_nothing_ends(here: Stage) -> None:
    here.work()
    waiting = Limits(grace_s=0.0, budget=Budget(micros=1_000, on_exceeded="wait"))
    asked = await here.bash("echo up; read line; echo $line", limits=waiting)
    await here.saw(asked, printed("up"))
    await refused(here, await opened(here))
    await here.until(asked, lambda record: record.over_budget != "")
    await here.send(asked, "m", "on")
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED


async def test_why_it_is_stopped_is_not_forgotten_with_the_one_who_began_it(here: Stage) -> None:
    first = here.work(lease_s=1.0)
    asked = await here.bash(
        "trap 'echo once' TERM; echo up; while :; do sleep 0.05; done", limits=Limits(grace_s=1.5, budget=SMALL)
    )
    await here.saw(asked, printed("up"))
    await refused(here, await opened(here))
    await here.saw(asked, printed("once"))
    await here.stop(first)
    here.work()
    record = await here.ended(asked)
    assert record.outcome is not None
    assert (record.outcome.reason, record.outcome.signal) == (Reason.BUDGET, 9)


# -- a harness that is killed ------------------------------------------------------------------------------------------

TWICE = "echo $EXECUTION_ATTEMPT $EXECUTION_RESUMED; test -e mark && exit 0; touch mark; kill -KILL $$"


async def test_a_killed_harness_goes_on_in_its_old_files(here: Stage) -> None:
    here.work()
    asked = await here.bash(TWICE, retry=RetryPolicy(on_killed="retry", backoff_s=0.01))
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
    told = await here.history(asked)
    assert stdout(told) == b"1 0\n2 1\n"
    lost = [dict(e.data) for e in told if e.type == events.SANDBOX_LOST]
    assert lost == [{"reason": "harness_killed", "detail": "the harness was ended by signal 9", "in_a_row": 1}]
    assert [e.data.get("signal") for e in told if e.type == events.EXITED] == [9, None]
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    sandboxes = [str(e.data["sandbox_id"]) for e in told if e.type == events.SANDBOX_PLACED]
    assert (record.attempt, len(sandboxes)) == (2, 2)
    await here.gone(sandboxes[0])


async def test_the_answer_it_was_waiting_for_is_not_lost_with_it(here: Stage) -> None:
    """The call under way ends, with its event, before the next attempt is due."""
    here.work(drain_grace_s=3600.0)
    asked = await here.bash(f"read line; {TWICE}", retry=RetryPolicy(on_killed="retry", backoff_s=0.01))
    first = await opened(here)
    first.under_way = asyncio.get_running_loop().create_future()
    await here.send(asked, "m", "go")
    while not first.graces_s:
        await asyncio.sleep(0.01)
    await first.tell(Entry(events.EGRESS_REFUSED, {}))
    assert len(here.gateways.opened) == 1
    first.under_way.set_result(None)
    second = await opened(here, 2)
    assert second.execution.attempt == 2
    await here.send(asked, "n", "go")
    await here.ended(asked)
    told = kinds(await here.history(asked))
    assert told.index(events.EGRESS_REFUSED) < told.index(events.EXITED)


@pytest.mark.parametrize(
    ("script", "policy", "attempts"),
    [
        ("kill -KILL $$", RetryPolicy(), 1),  # auto: this harness does not resume
        ("kill -KILL $$", RetryPolicy(on_killed="end"), 1),
        ("kill -KILL $$", RetryPolicy(on_killed="retry", max_failures=2, backoff_s=0.01), 3),
        # What it prints is nothing new: it would be printed, and killed, for ever.
        ("echo up; kill -KILL $$", RetryPolicy(on_killed="retry", max_failures=2, backoff_s=0.01), 3),
        ("kill -INT $$", RetryPolicy(on_killed="retry", backoff_s=0.01), 1),
    ],
)
async def test_where_that_is_the_end(here: Stage, script: str, policy: RetryPolicy, attempts: int) -> None:
    here.work()
    record = await here.ended(await here.bash(script, retry=policy))
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.reason) == (OutcomeKind.FAILED, Reason.SIGNAL)
    assert record.attempt == attempts


async def test_a_step_that_was_never_done_before_begins_the_count_anew(here: Stage) -> None:
    """A model call that was paid, an intent's end, a message: each is one step further, so it is not for ever."""
    here.work()
    policy = RetryPolicy(on_killed="retry", max_failures=1, backoff_s=0.01)
    # It gets the earlier messages again each time; those are nothing new.
    reads = "echo up; while read line; do test $line = $EXECUTION_ATTEMPT && break; done"
    asked = await here.bash(f"{reads}; test $line = 4 && exit 0; kill -KILL $$", retry=policy)
    for attempt in range(1, 5):
        await opened(here, attempt)
        await here.send(asked, f"m{attempt}", str(attempt))
    record = await here.ended(asked)
    told = await here.history(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
    assert record.attempt == 4
    assert [e.data["in_a_row"] for e in told if e.type == events.SANDBOX_LOST] == [1, 1, 1]


async def test_cancelled_and_killed_is_cancelled(here: Stage) -> None:
    here.work()
    asked = await here.bash("echo up; sleep 1000", retry=RetryPolicy(on_killed="retry"))
    await here.saw(asked, printed("up"))
    await here.cancel(asked)
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.CANCELLED
    assert record.attempt == 1
