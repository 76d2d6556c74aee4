"""Sleep and waking: by wish and when nothing happens; every message once, files and messages of one moment."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import events
from orchestrator.engine.steering import WINDOW
from orchestrator.errors import EngineUnavailable
from orchestrator.events import Event
from orchestrator.execution import (
    Execution,
    HibernateWant,
    Limits,
    OutcomeKind,
    PauseWant,
    Reason,
    SnapshotPolicy,
)
from orchestrator.harnesses import Harness
from orchestrator.lifecycle import ExecutionState
from orchestrator.sandbox import Running
from orchestrator.snapshots import Origin
from tests.engine.stage import Stage, kinds, printed, soon, stdout
from tests.engine.test_snapshots import cut

pytestmark = pytest.mark.root
S = ExecutionState
NEVER = SnapshotPolicy(at_end=False)
#: Goes on from its files: every message is a line of the log, and what it prints says how many there are.
LEDGER = """
echo attempt $EXECUTION_ATTEMPT resumed $EXECUTION_RESUMED >> starts
echo up $EXECUTION_ATTEMPT
while read m; do
  [ "$m" = end ] && exit 0
  echo "$m" >> log
  echo "got $m as $(wc -l < log)"
done
"""


def ledger(script: str = LEDGER) -> Harness:
    return Harness("ledger", ("/bin/bash", "-c", script), resumes=True)


async def begin(here: Stage, **spec: Any) -> Execution:
    asked = await here.submit(harness="ledger", declared=spec.pop("declared", ledger()), snapshots=NEVER, **spec)
    await here.saw(asked, printed("up 1"))
    return asked


async def sleep(here: Stage, execution: Execution, want: str = "h") -> Execution:
    await here.parts.executions.want(execution.id, HibernateWant(want))
    return await here.until(execution, lambda record: record.state is S.HIBERNATED)


def file(here: Stage, execution: Execution, path: str) -> bytes:
    opened = here.parts.workspaces.files(execution.sandbox_id or "").open(path)
    try:
        return opened.read(0, 1 << 20)
    finally:
        opened.close()


def created(history: list[Event]) -> list[str]:
    return [event.data["why"] for event in history if event.type == events.SNAPSHOT_CREATED]


async def test_sleep_and_wake(here: Stage) -> None:
    worker = here.work()
    asked = await begin(here)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    slept = await sleep(here, asked)
    await here.idle(worker)
    assert await here.parts.driver.list() == [], "nothing of it runs"
    assert slept.owner is None and slept.wants.hibernate is None
    snapshot = await here.parts.snapshots.get(slept.snapshot_id or "", tenant="default")
    assert snapshot.cut.inbox == 1 and snapshot.why == "hibernate"
    await here.send(asked, "2", "two")
    await here.saw(asked, printed("got two as 2"))
    await here.send(asked, "3", "end")
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED and record.attempt == 2
    assert stdout(await here.history(asked)) == b"up 1\ngot one as 1\nup 2\ngot two as 2\n"
    assert file(here, record, "starts") == b"attempt 1 resumed 0\nattempt 2 resumed 1\n"


async def test_with_more_messages_behind_it_than_one_window(here: Stage) -> None:
    """What an earlier attempt has read is not sent again, and takes no room of what is to be sent."""
    here.work()
    asked = await begin(here)
    for n in range(1, WINDOW + 3):
        await here.send(asked, f"m{n}", f"{n}")
    await here.saw(asked, printed(f"got {WINDOW + 2} as"))
    await sleep(here, asked)
    await here.send(asked, "next", "next")
    await here.saw(asked, printed(f"got next as {WINDOW + 3}"))


async def test_of_a_paused_one(here: Stage) -> None:
    here.work()
    asked = await begin(here)
    await here.parts.executions.want(asked.id, PauseWant("p", True))
    await here.until(asked, lambda record: record.state is S.PAUSED)
    await sleep(here, asked)
    await here.parts.executions.want(asked.id, PauseWant("r", False))
    await here.saw(asked, printed("up 2"))


async def test_one_that_would_begin_anew_does_not_sleep(here: Stage) -> None:
    here.work()
    asked = await here.bash("echo up; exec sleep 1000")
    await here.saw(asked, printed("up"))
    await here.parts.executions.want(asked.id, HibernateWant("h"))
    refused = await here.saw(asked, lambda event: event.type == events.WANTED and "refused" in event.data)
    assert "pause it instead" in refused.data["refused"]
    assert (await here.parts.executions.get(asked.id)).state is S.RUNNING


async def test_mail_it_has_not_read_keeps_it_awake(here: Stage) -> None:
    here.work()
    deaf = ledger("echo up 1; while ! [ -e go ]; do sleep 0.02; done; read m; echo got $m; read m")
    asked = await begin(here, declared=deaf)
    await here.send(asked, "1", "one")
    await here.saw(asked, lambda event: event.type == events.MESSAGE_DELIVERED)
    await here.parts.executions.want(asked.id, HibernateWant("h"))
    back = await here.saw(asked, lambda event: event.data.get("trigger") == "mail")
    assert back.data["to"] == S.RUNNING
    record = await here.parts.executions.get(asked.id)
    (here.parts.workspaces.slot(record.sandbox_id or "").path / "vol" / "workspace" / "go").touch()
    await here.saw(asked, printed("got one"))
    assert record.attempt == 1


async def test_a_cut_that_cannot_be_had(here: Stage) -> None:
    here.work()
    asked = await begin(here)
    here.script.fail_at["pause"] = [EngineUnavailable("away")]
    await here.parts.executions.want(asked.id, HibernateWant("h"))
    await here.saw(asked, lambda event: event.data.get("trigger") == "cut_failed")
    history = await here.history(asked)
    assert events.SNAPSHOT_FAILED in kinds(history) and created(history) == []
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    await sleep(here, asked, "again")


async def lose(here: Stage, execution: Execution) -> None:
    """Its workspace, as a disk loses it."""
    await here.parts.driver.remove(execution.sandbox_id or "")
    await here.parts.workspaces.remove(execution.sandbox_id or "")


async def test_without_its_workspace_it_wakes_from_the_snapshot(here: Stage) -> None:
    worker = here.work()
    asked = await begin(here)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    slept = await sleep(here, asked)
    await here.idle(worker)
    await lose(here, slept)
    await here.send(asked, "2", "two")
    await here.saw(asked, printed("got two as 2"))
    history = await here.history(asked)
    (restored,) = [event for event in history if event.type == events.SNAPSHOT_RESTORED]
    assert restored.data == {"id": slept.snapshot_id, "attempt": 2, "inbox_base": 1}


async def test_a_loss_goes_back_to_the_snapshot_and_its_messages_come_again(here: Stage) -> None:
    here.work()
    asked = await begin(here)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    taken = await cut(here, asked)
    await here.send(asked, "2", "two")
    await here.saw(asked, printed("got two as 2"))
    await lose(here, await here.parts.executions.get(asked.id))
    await here.saw(asked, printed("up 2"))
    again = await here.saw(asked, lambda e: e.type == events.MESSAGE_DELIVERED and e.attempt == 2)
    assert again.data["n"] == 2 and again.data["redelivered"] is True
    # And once more, its files kept this time: it goes on from what this attempt was given.
    record = await here.parts.executions.get(asked.id)
    await here.send(asked, "3", "three")
    await here.saw(asked, printed("got three as 3"))
    await here.parts.driver.remove(record.sandbox_id or "")
    await here.saw(asked, printed("up 3"))
    await here.send(asked, "4", "four")
    await here.saw(asked, printed("got four as 4"))
    assert taken.cut.inbox == 1


async def test_a_corrupt_one_is_named_and_the_one_before_is_used(here: Stage) -> None:
    here.work()
    asked = await begin(here)
    good, bad = [await cut(here, asked) for _ in range(2)]
    for one in (good, bad):
        digest, size, files = await here.parts.workspaces.digest(one.id)
        await here.parts.snapshots.measured(one.id, digest=digest, size_bytes=size, files=files)
    damage(here, bad.id)
    await lose(here, await here.parts.executions.get(asked.id))
    await here.saw(asked, printed("up 2"))
    history = await here.history(asked)
    (corrupt,) = [event for event in history if event.type == events.SNAPSHOT_CORRUPT]
    assert corrupt.data["id"] == bad.id and corrupt.data["instead"] == good.id and "digest" in corrupt.data["detail"]
    assert [e.data["id"] for e in history if e.type == events.SNAPSHOT_RESTORED] == [good.id]


def damage(here: Stage, snapshot_id: str) -> None:
    """One byte more in one of its files."""
    slots = here.parts.workspaces.slot("sbx_x").path.parent
    (found,) = [path for path in slots.parent.rglob("starts") if snapshot_id in str(path)]
    with found.open("ab") as starts:
        starts.write(b"!")


async def test_with_nothing_left_it_is_lost_and_says_so(here: Stage) -> None:
    worker = here.work()
    asked = await begin(here)
    slept = await sleep(here, asked)
    await here.idle(worker)
    await lose(here, slept)
    await here.parts.workspaces.drop(slept.snapshot_id or "")
    await here.send(asked, "1", "one")
    record = await here.ended(asked)
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.reason) == (OutcomeKind.LOST, Reason.SANDBOX_LOST)
    assert "neither its workspace nor a whole snapshot" in record.outcome.message


async def test_a_fork_begins_from_the_snapshot(here: Stage) -> None:
    here.work()
    asked = await begin(here)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    taken = await cut(here, asked)
    origin = Origin(asked.id, taken.id, taken.cut.seq)
    fork = await here.submit(harness="ledger", declared=ledger(), origin=origin)
    await here.send(fork, "f", "forked")
    await here.saw(fork, printed("got forked as 2"))
    await here.send(asked, "2", "two")
    await here.saw(asked, printed("got two as 2"))
    await here.send(fork, "e", "end")
    record = await here.ended(fork)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED and record.attempt == 1
    assert file(here, record, "starts") == b"attempt 1 resumed 0\nattempt 1 resumed 1\n"
    assert [e.data["id"] for e in await here.history(fork) if e.type == events.SNAPSHOT_RESTORED] == [taken.id]


async def test_a_fork_from_what_is_not_whole_is_refused_by_name(here: Stage) -> None:
    here.work()
    asked = await begin(here)
    taken = await cut(here, asked)
    await here.parts.workspaces.drop(taken.id)
    fork = await here.submit(harness="ledger", declared=ledger(), origin=Origin(asked.id, taken.id, 1))
    record = await here.ended(fork)
    assert record.outcome is not None and record.outcome.reason is Reason.BAD_CONFIGURATION
    assert taken.id in record.outcome.message


async def test_idle_it_rests_then_sleeps_then_wakes(here: Stage) -> None:
    worker = here.work()
    asked = await begin(here, limits=Limits(idle_timeout_s=1.0))
    record = await here.parts.executions.get(asked.id)

    async def stands_still() -> bool:
        status = await here.parts.driver.observe(record.sandbox_id or "")
        return isinstance(status, Running) and status.paused

    await soon(stands_still)
    resting = await here.until(asked, lambda one: one.frozen)
    assert resting.state is S.RUNNING
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    await here.until(asked, lambda one: not one.frozen)
    await here.saw(asked, lambda event: event.data.get("trigger") == "idle")
    slept = await here.until(asked, lambda one: one.state is S.HIBERNATED)
    await here.idle(worker)
    assert slept.attempt == 1
    await here.send(asked, "2", "two")
    await here.saw(asked, printed("got two as 2"))


async def test_another_worker_finds_it_at_rest(here: Stage) -> None:
    """It is not known for how long: its time begins anew, and the record says so."""
    first = here.work()
    asked = await begin(here, limits=Limits(idle_timeout_s=8.0))
    await here.until(asked, lambda one: one.frozen)
    await here.stop(first)
    here.work()
    await here.until(asked, lambda one: not one.frozen)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    assert (await here.parts.executions.get(asked.id)).attempt == 1


async def test_a_child_keeps_it_awake(here: Stage) -> None:
    here.work()
    busy = ledger("echo up 1; sleep 3; echo slept; read m")
    asked = await begin(here, declared=busy, limits=Limits(idle_timeout_s=0.5))
    asleep = await here.saw(asked, lambda event: event.data.get("trigger") == "idle")
    said = await here.saw(asked, printed("slept"))
    assert said.seq < asleep.seq
