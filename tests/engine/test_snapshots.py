"""Snapshots of what runs, stands still or has ended: one consistent cut each, told once, and the work goes on."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import events
from orchestrator.engine.cutting import new_id
from orchestrator.errors import EngineUnavailable
from orchestrator.events import Cursor, Event
from orchestrator.execution import Execution, OutcomeKind, PauseWant, SnapshotPolicy, SnapshotWant
from orchestrator.lifecycle import ExecutionState
from orchestrator.sandbox import Running
from orchestrator.snapshots import Snapshot, Why
from tests.engine.stage import Stage, kinds, printed, stdout

pytestmark = pytest.mark.root
S = ExecutionState
NEVER = SnapshotPolicy(at_end=False)
#: Prints a line, then writes it: what the files hold was said before. Takes a breath, so that a busy machine keeps up.
COUNTER = "exec 9<> <(:); i=0; while :; do i=$((i+1)); echo $i; echo $i >> log; read -t 0.004 -u 9; done"
TALKER = "echo up; while read m; do echo got $m; echo $m >> log; done"


def told(kind: str, snapshot_id: str = "") -> Any:
    return lambda event: event.type == kind and snapshot_id in ("", event.data["id"])


async def cut(here: Stage, execution: Execution, **other: Any) -> Snapshot:
    """One asked for, and there."""
    want = SnapshotWant(new_id(), **other)
    await here.parts.executions.want(execution.id, want)
    event = await here.saw(execution, lambda e: e.data.get("id") == want.id and e.type.startswith("snapshot."))
    assert event.type == events.SNAPSHOT_CREATED, event.data
    return await here.parts.snapshots.get(want.id, tenant="default")


def content(here: Stage, snapshot_id: str, path: str) -> bytes:
    file = here.parts.workspaces.snapshot_files(snapshot_id).open(path)
    try:
        return file.read(0, 1 << 24)
    finally:
        file.close()


def lines_before(history: list[Event], seq: int) -> list[bytes]:
    return stdout([event for event in history if event.seq <= seq]).splitlines()


async def test_files_and_history_agree(here: Stage) -> None:
    here.work()
    asked = await here.bash(COUNTER, snapshots=NEVER)
    await here.saw(asked, printed("100\n"))
    taken = [await cut(here, asked) for _ in range(5)]
    await here.cancel(asked, grace_s=0)
    await here.ended(asked)
    history = await here.history(asked)
    for snapshot in taken:
        log = content(here, snapshot.id, "log").splitlines()
        said = lines_before(history, snapshot.cut.seq)
        # The one line it had said and not yet written, at most.
        assert len(said) - 1 <= len(log) <= len(said)
        assert log == said[: len(log)]
        (created,) = [e for e in history if e.type == events.SNAPSHOT_CREATED and e.data["id"] == snapshot.id]
        assert created.seq > snapshot.cut.seq and created.data["cut"]["src"] == snapshot.cut.src
    assert [one.parent for one in taken] == ["", *(one.id for one in taken[:-1])]
    lengths = [len(content(here, one.id, "log").splitlines()) for one in taken]
    assert lengths == sorted(set(lengths)), "it went on between"
    assert len(stdout(history).splitlines()) > lengths[-1]


async def test_the_record_of_one(here: Stage) -> None:
    here.work()
    asked = await here.bash(TALKER, snapshots=NEVER)
    await here.send(asked, "m", "one")
    await here.saw(asked, printed("got one"))
    snapshot = await cut(here, asked, name="first", labels={"a": "b"})
    assert snapshot.why is Why.ASKED and snapshot.name == "first" and snapshot.labels == {"a": "b"}
    assert snapshot.cut.inbox == 1 and snapshot.cut.attempt == 1 and snapshot.cut.intents == 0
    assert snapshot.host == "here" and snapshot.store == "directory" and snapshot.execution_id == asked.id
    record = await here.parts.executions.get(asked.id)
    assert record.snapshot_id == snapshot.id and record.wants.snapshots == ()
    assert record.state is S.RUNNING and record.sandbox_id == snapshot.sandbox_id
    await here.send(asked, "n", "two")
    await here.saw(asked, printed("got two"))


async def test_of_a_paused_one_it_stays_paused(here: Stage) -> None:
    here.work()
    asked = await here.bash(COUNTER, snapshots=NEVER)
    await here.saw(asked, printed("10\n"))
    await here.parts.executions.want(asked.id, PauseWant("p", True))
    paused = await here.until(asked, lambda record: record.state is S.PAUSED)
    await cut(here, asked)
    status = await here.parts.driver.observe(paused.sandbox_id or "")
    assert isinstance(status, Running) and status.paused
    await here.parts.executions.want(asked.id, PauseWant("r", False))
    await here.until(asked, lambda record: record.state is S.RUNNING)


async def test_by_period(here: Stage) -> None:
    here.work()
    asked = await here.bash(COUNTER, snapshots=SnapshotPolicy(every_s=0.2, at_end=False))
    seen: list[str] = []
    async for page in here.parts.history.follow(asked.id, Cursor()):
        seen += [event.data["why"] for event in page.events if event.type == events.SNAPSHOT_CREATED]
        if len(seen) >= 3:
            break
    assert set(seen) == {"periodic"}


async def test_by_period_never_twice_of_what_stands_still(here: Stage) -> None:
    here.work(look_s=0.1)
    asked = await here.bash("echo up; exec sleep 1000", snapshots=SnapshotPolicy(every_s=0.3, at_end=False))
    await here.saw(asked, printed("up"))
    await here.parts.executions.want(asked.id, PauseWant("p", True))
    paused = await here.saw(asked, lambda e: e.type == events.STATE and e.data["to"] == S.PAUSED)
    await here.saw(asked, lambda e: e.type == events.SNAPSHOT_CREATED and e.seq > paused.seq)
    # Three more periods, told by another execution that has the same one.
    other = await here.bash(COUNTER, snapshots=SnapshotPolicy(every_s=0.3, at_end=False))
    count = 0
    async for page in here.parts.history.follow(other.id, Cursor()):
        count += sum(event.type == events.SNAPSHOT_CREATED for event in page.events)
        if count >= 3:
            break
    history = await here.history(asked)
    assert sum(e.type == events.SNAPSHOT_CREATED and e.seq > paused.seq for e in history) == 1


async def test_at_the_end(here: Stage) -> None:
    here.work()
    asked = await here.bash("echo kept > file; (while :; do echo x >> orphan; done) & exit 0")
    record = await here.ended(asked)
    history = await here.history(asked)
    (created,) = [event for event in history if event.type == events.SNAPSHOT_CREATED]
    assert created.data["why"] == "end" and record.snapshot_id == created.data["id"]
    assert content(here, created.data["id"], "file") == b"kept\n"
    assert record.sandbox_id is not None
    with_orphan = here.parts.workspaces.files(record.sandbox_id).open("orphan")
    assert content(here, created.data["id"], "orphan") == with_orphan.read(0, 1 << 24), "nothing wrote after it"
    with_orphan.close()


async def test_not_at_the_end_where_nobody_wants_it(here: Stage) -> None:
    here.work()
    asked = await here.bash("echo kept > file", snapshots=NEVER)
    await here.ended(asked)
    assert events.SNAPSHOT_CREATED not in kinds(await here.history(asked))


@pytest.mark.parametrize("times", [1, 3])
async def test_an_engine_that_does_not_answer(here: Stage, times: int) -> None:
    """Once: again. Always: it is told, and the work goes on."""
    here.work(lease_s=60.0)  # another epoch counts anew
    asked = await here.bash(COUNTER, snapshots=NEVER)
    await here.saw(asked, printed("10\n"))
    here.script.fail_at["pause"] = [EngineUnavailable("away") for _ in range(times)]
    want = SnapshotWant(new_id())
    await here.parts.executions.want(asked.id, want)
    event = await here.saw(asked, lambda e: e.type.startswith("snapshot."))
    assert event.type == (events.SNAPSHOT_CREATED if times < 3 else events.SNAPSHOT_FAILED)
    assert (await here.until(asked, lambda r: not r.wants.snapshots)).state is S.RUNNING
    await goes_on(here, asked)


async def goes_on(here: Stage, execution: Execution) -> None:
    """It prints more than it had."""
    tail = (await here.parts.history.tail(execution.id)).tail
    await here.saw(execution, lambda event: event.type == events.OUTPUT and event.seq > tail)


async def test_cancel_during_a_long_copy(here: Stage) -> None:
    here.work()
    asked = await here.bash("for i in $(seq 3000); do : > f$i; done; echo up; exec sleep 1000", snapshots=NEVER)
    await here.saw(asked, printed("up"))
    await here.parts.executions.want(asked.id, SnapshotWant(new_id()))
    await here.cancel(asked, grace_s=0)
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.CANCELLED
    assert [k for k in kinds(await here.history(asked)) if k.startswith("snapshot.")] in (
        [events.SNAPSHOT_CREATED],
        [events.SNAPSHOT_FAILED],
    )
