"""Who runs what: bounded, fair over hosts, and an actor that fails takes nobody with it."""

from __future__ import annotations

import pytest

from orchestrator import events
from orchestrator.engine import recall
from orchestrator.events import Entry
from orchestrator.execution import OutcomeKind
from orchestrator.executions import Claim
from orchestrator.history import Change
from orchestrator.lifecycle import ExecutionState, Trigger
from tests.engine.stage import Stage, printed, stdout

pytestmark = pytest.mark.root
S = ExecutionState


async def test_no_more_at_once_than_there_is_room(here: Stage) -> None:
    worker = here.work(concurrency=2)
    asked = [await here.bash("sleep 0.2; echo done") for _ in range(6)]
    most = 0
    while (await here.parts.executions.count()).get(S.FINISHED, 0) < len(asked):
        most = max(most, worker.owned)
    assert most == 2
    for one in asked:
        assert stdout(await here.history(one)) == b"done\n"


async def test_a_full_worker_still_hears_its_own_bell(here: Stage) -> None:
    here.work(concurrency=1, look_s=3600)
    asked = await here.bash("read line; echo $line")
    await here.until(asked, lambda record: record.state is S.RUNNING)
    await here.send(asked, "m", "heard")
    await here.saw(asked, printed("heard"))


async def test_a_sandbox_is_only_adopted_on_its_own_host(here: Stage) -> None:
    there = here.work(host="there")
    asked = await here.bash("echo up; read line")
    await here.saw(asked, printed("up"))
    await here.drain(there)
    here.work(host="elsewhere")
    other = await here.bash("echo I run anywhere")
    await here.ended(other)  # whoever ran this had room, and passed the first one by
    assert (await here.parts.executions.get(asked.id)).epoch == 1
    here.work(host="there")
    await here.until(asked, lambda record: record.epoch == 2)
    await here.send(asked, "m", "x")
    await here.ended(asked)


async def test_an_actor_that_fails_is_tried_again(here: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of ours, not of the platform: it is logged, the lease runs out, somebody tries again."""
    fault = RuntimeError("a bug")
    here.script.fail_at["ensure"] = [fault]  # type: ignore[list-item]
    here.work(lease_s=1.0)
    asked = await here.bash("echo in the end")
    beside = await here.bash("echo not bothered")
    for one in (asked, beside):
        record = await here.ended(one)
        assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [fault]


async def test_recall_finds_what_lies_pages_back(here: Stage) -> None:
    asked = await here.bash("true")
    claim = await here.parts.executions.claim("me", "here", lease_s=30)
    assert isinstance(claim, Claim)
    append, lease = here.parts.history.append, claim.lease
    change = Change(trigger=Trigger.CLAIMED, expects=S.QUEUED, attempt=1, sandbox_id="sbx_x", host="here")
    await append(
        lease, attempt=1, own=1, entries=[Entry(events.SANDBOX_PLACED, {"sandbox_id": "sbx_x"})], change=change
    )
    for own in range(2, 5):
        done = await append(lease, attempt=1, own=own, entries=[Entry("progress", {"n": n}) for n in range(700)])
    record = await here.parts.executions.get(asked.id)

    async def found(kind: str, tail: int) -> int | None:
        event = await recall.last_event(here.parts.history, record, tail, lambda event: event.type == kind)
        return event.seq if event is not None else None

    assert await found(events.SANDBOX_PLACED, done.tail) == 2
    assert await found("progress", done.tail) == done.tail
    assert await found("progress", 100) == 100
    assert await found(events.EXITED, done.tail) is None
    await here.parts.executions.release(lease)
