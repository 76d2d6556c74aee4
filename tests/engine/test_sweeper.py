"""The sweeper on real parts: what a crash left is removed, what is somebody's is not, and it says so."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.engine.sweeper import Sweeper
from orchestrator.errors import EngineUnavailable, NotFound, Unavailable
from orchestrator.execution import OutcomeKind, Reason, Resources, SnapshotPolicy
from orchestrator.lifecycle import ExecutionState
from orchestrator.sandbox import Absent, Running, SandboxSpec
from orchestrator.snapshots import KeepPolicy, Origin, Why
from tests.engine.stage import Stage, printed, stdout
from tests.engine.test_snapshots import cut

pytestmark = pytest.mark.root


def sweeper(here: Stage, **settings: float) -> Sweeper:
    given = {"orphan_grace_s": 0.0, **settings}
    return Sweeper(replace(here.parts, settings=replace(here.parts.settings, **given)))  # type: ignore[arg-type]


async def box(here: Stage, sandbox_id: str) -> None:
    """A sandbox of ours that no record names."""
    slot = await here.parts.workspaces.prepare(sandbox_id, inherit=None, seeds=(), disk_bytes=0)
    await here.parts.driver.ensure(SandboxSpec("any", Resources(), slot.path), sandbox_id)


async def test_orphans_go_the_living_stay(here: Stage, caplog: pytest.LogCaptureFixture) -> None:
    here.work(sweep_interval_s=3600)
    asked = await here.bash("echo up; read line")
    await here.saw(asked, printed("up"))
    record = await here.parts.executions.get(asked.id)
    assert record.sandbox_id is not None
    await box(here, "sbx_orphan")
    await sweeper(here, orphan_grace_s=3600).sweep()
    assert isinstance(await here.parts.driver.observe("sbx_orphan"), Running)
    await sweeper(here).sweep()
    assert isinstance(await here.parts.driver.observe("sbx_orphan"), Absent)
    assert not here.parts.workspaces.slot("sbx_orphan").path.exists()
    assert isinstance(await here.parts.driver.observe(record.sandbox_id), Running)
    assert "sbx_orphan" in " ".join(str(vars(line)) for line in caplog.records)
    await here.cancel(asked, 0)
    await here.ended(asked)


async def test_an_empty_store_removes_nothing(here: Stage) -> None:
    await box(here, "sbx_somebodys")
    await sweeper(here).sweep()
    assert isinstance(await here.parts.driver.observe("sbx_somebodys"), Running)


async def test_an_engine_that_does_not_answer_stops_the_sweep(here: Stage) -> None:
    await here.bash("true")
    await box(here, "sbx_orphan")
    here.script.fail_at["list"] = [EngineUnavailable("away")]
    with pytest.raises(Unavailable):
        await sweeper(here).sweep()
    assert isinstance(await here.parts.driver.observe("sbx_orphan"), Running)


async def test_what_a_crash_left_of_one_that_ended(here: Stage) -> None:
    """It ended, its worker died before it removed the box: the box and the spool go, the files stay."""
    here.script.fail_at["remove"] = [EngineUnavailable("away")]
    worker = here.work(sweep_interval_s=3600)
    record = await here.ended(await here.bash("echo kept > file"))
    await here.idle(worker)
    assert record.sandbox_id is not None
    assert isinstance(await here.parts.driver.observe(record.sandbox_id), Running)
    await sweeper(here).sweep()
    assert isinstance(await here.parts.driver.observe(record.sandbox_id), Absent)
    assert not here.parts.workspaces.slot(record.sandbox_id).spool.exists()
    assert here.parts.workspaces.files(record.sandbox_id).stat("file").size_bytes == 5


async def test_retention(here: Stage) -> None:
    worker = here.work(sweep_interval_s=3600)
    record = await here.ended(await here.bash("true"))
    other = await here.bash("true")
    await here.ended(other)
    await here.idle(worker)
    assert record.sandbox_id is not None
    await sweeper(here, retention_s=3600).sweep()
    assert here.parts.workspaces.slot(record.sandbox_id).path.exists()
    while datetime.now(UTC) < (
        record.finished_at or datetime.now(UTC)
    ):  # the store's clock and ours may differ by a tick
        await asyncio.sleep(0.001)
    await sweeper(here, retention_s=1e-6).sweep()
    assert not here.parts.workspaces.slot(record.sandbox_id).path.exists()
    assert [left async for left in here.parts.executions.everything()] == []


async def until_past(moment: datetime | None) -> None:
    """The store's clock and ours may differ by a tick."""
    while moment is None or datetime.now(UTC) <= moment:
        await asyncio.sleep(0.001)


async def text(here: Stage, execution_id: str) -> dict[str, bytes]:
    """What the shelf has of it, by path."""
    found = {}
    for one in await here.parts.shelf.kept(execution_id):
        file = await here.parts.shelf.open(execution_id, one)
        found[one.path] = file.read(0, 100)
        file.close()
    return found


async def test_a_workspace_goes_before_its_execution_and_its_artifacts_stay(
    everywhere: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    here = everywhere
    caplog.set_level("INFO")
    worker = here.work(sweep_interval_s=3600)
    say = """echo '{"type":"artifact","path":"/workspace/out/report"}'"""
    asked = await here.bash(f"mkdir out; echo named > out/report; echo left > artifacts/a; {say}", output="jsonl")
    record = await here.ended(asked)
    await here.idle(worker)
    assert record.sandbox_id is not None
    told = [e.data for e in await here.history(asked) if e.type == "artifact" and e.source == "platform"]
    assert [(one["path"], one["size_bytes"]) for one in told] == [("out/report", 6), ("a", 5)]
    await until_past(record.finished_at)
    await sweeper(here, workspace_retention_s=3600).sweep()
    assert here.parts.workspaces.slot(record.sandbox_id).path.exists()
    await sweeper(here, workspace_retention_s=1e-6).sweep()
    assert not here.parts.workspaces.slot(record.sandbox_id).path.exists()
    assert "removed the workspace of a finished execution" in caplog.text
    assert await text(here, asked.id) == {"out/report": b"named\n", "a": b"left\n"}
    assert (await here.parts.executions.get(asked.id)).outcome is not None
    await sweeper(here, retention_s=1e-6).sweep()
    assert await here.parts.shelf.list() == [] and [left async for left in here.parts.executions.everything()] == []


async def test_what_others_descend_from_goes_and_they_stay_whole(everywhere: Stage) -> None:
    here = everywhere
    here.work(sweep_interval_s=3600)
    one = SnapshotPolicy(keep=KeepPolicy(last=1, days=0))
    asked = await here.bash(
        "echo first > file; echo up; read line; echo second > file; echo on; read line", snapshots=one
    )
    await here.saw(asked, printed("up"))
    early = await cut(here, asked, why=Why.PERIODIC)
    fork = await here.bash(
        "cat file; echo forked; read line", snapshots=one, origin=Origin(asked.id, early.id, early.cut.seq)
    )
    await here.saw(fork, printed("forked"))
    await here.send(asked, "1", "go on")
    await here.saw(asked, printed("on"))
    late = await cut(here, asked, why=Why.PERIODIC)

    async def swept() -> set[str]:
        await sweeper(here).sweep()
        there = {id for id, _ in await here.parts.workspaces.snapshots()}
        assert there == {snapshot.id async for snapshot in here.parts.snapshots.everything()}
        return there

    assert await swept() == {early.id, late.id}  # the fork would begin again from the early one
    own = await cut(here, fork, why=Why.PERIODIC)
    digest = await here.parts.workspaces.digest(own.id)
    assert await swept() == {late.id, own.id}
    assert await here.parts.workspaces.digest(own.id) == digest
    again = await here.bash(
        "cat file", origin=Origin(fork.id, own.id, own.cut.seq), snapshots=SnapshotPolicy(at_end=False)
    )
    await here.ended(again)
    assert stdout(await here.history(again)) == b"first\n"
    record = await here.parts.executions.get(fork.id)
    assert here.parts.workspaces.files(record.sandbox_id or "").stat("file").size_bytes == 6
    for living in (asked, fork):
        await here.cancel(living, 0)
        await here.ended(living)


@dataclass
class Later:
    """A clock that is ahead."""

    days: float

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(days=self.days)

    def monotonic(self) -> float:
        return time.monotonic()


async def test_each_thing_at_its_own_time(here: Stage) -> None:
    worker = here.work(sweep_interval_s=3600)
    record = await here.ended(await here.bash("echo left > artifacts/a"))
    await here.idle(worker)
    slot = here.parts.workspaces.slot(record.sandbox_id or "").path
    days = 86_400.0
    found = []
    for after in (0.9, 1.1, 6.9, 7.1):
        settings = replace(here.parts.settings, workspace_retention_s=1 * days, retention_s=7 * days)
        await Sweeper(replace(here.parts, settings=settings, clock=Later(after))).sweep()
        records = [one.id async for one in here.parts.executions.everything()]
        found.append((slot.exists(), len(await here.parts.shelf.list()), len(records)))
    assert found == [(True, 1, 1), (False, 1, 1), (False, 1, 1), (False, 0, 0)]


async def test_artifacts_of_one_cancelled_in_its_sleep_are_kept_before_its_files_go(here: Stage) -> None:
    """No worker was there at its end."""
    worker = here.work(sweep_interval_s=3600)
    asked = await here.bash("echo left > artifacts/a; exit 75")
    asleep = await here.until(asked, lambda record: record.state is ExecutionState.HIBERNATED)
    await here.idle(worker)
    await here.cancel(asked)
    record = await here.ended(asked)
    await until_past(record.finished_at)
    with pytest.raises(NotFound):
        await here.parts.shelf.kept(asked.id)
    await sweeper(here, workspace_retention_s=1e-6).sweep()
    assert not here.parts.workspaces.slot(asleep.sandbox_id or "").path.exists()
    assert await text(here, asked.id) == {"a": b"left\n"}


async def test_artifacts_nobody_has_a_record_of_go_after_the_grace(here: Stage) -> None:
    await here.bash("true")
    await here.parts.shelf.name("exe_nobody", ["x"])
    await sweeper(here, orphan_grace_s=3600).sweep()
    assert [id for id, _ in await here.parts.shelf.list()] == ["exe_nobody"]
    await sweeper(here).sweep()
    assert await here.parts.shelf.list() == []


async def test_snapshots_go_by_policy_and_the_history_says_so(here: Stage) -> None:
    here.work(sweep_interval_s=3600)
    keep = SnapshotPolicy(every_s=None, keep=KeepPolicy(last=1, days=0))
    asked = await here.bash("echo up; read line", snapshots=keep)
    await here.saw(asked, printed("up"))
    asked_for = (await cut(here, asked)).id
    periodic = [(await cut(here, asked, why=Why.PERIODIC)).id for _ in range(3)]
    await sweeper(here).sweep()
    left = [one.id async for one in here.parts.snapshots.everything()]
    assert sorted(left) == sorted([asked_for, periodic[-1]])
    assert [id for id, _ in await here.parts.workspaces.snapshots()] == sorted(left)
    said = [e.data for e in await here.history(asked) if e.type == "snapshot.removed"]
    assert said == [{"id": id, "name": "", "why": "policy"} for id in periodic[:2]]
    await here.cancel(asked, 0)
    await until_past((await here.ended(asked)).finished_at)
    await sweeper(here, retention_s=1e-6).sweep()  # somebody asked for one of its snapshots: it stays, whole
    assert (await here.parts.executions.get(asked.id)).outcome is not None


async def test_a_host_that_fell_silent_is_lost(here: Stage) -> None:
    there = here.work(host="there", host_lost_after_s=3600)
    asked = await here.bash("echo up; sleep 1000")
    await here.saw(asked, printed("up"))
    await here.stop(there)
    watching = sweeper(here, host_lost_after_s=0.2)
    await watching.sweep()  # the first time it is only heard of
    while (await here.parts.executions.get(asked.id)).state is ExecutionState.RUNNING:
        await asyncio.sleep(0.1)
        await watching.sweep()
    record = await here.ended(asked)
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.reason) == (OutcomeKind.LOST, Reason.HOST_LOST)


async def test_the_slots_owner_is_left_alone(here: Stage) -> None:
    """Whatever lies beside our slots in the directory is not ours to remove."""
    await here.bash("true")
    root = here.parts.workspaces.slot("x").path.parent
    root.mkdir(parents=True, exist_ok=True)
    (root / "notes.txt").write_text("mine")
    os.utime(root / "notes.txt", (0, 0))
    await sweeper(here).sweep()
    assert (root / "notes.txt").read_text() == "mine"


async def test_snapshots(here: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """What no record names goes, what is somebody's is read; a record without files goes where nobody needs it."""
    here.work(sweep_interval_s=3600)
    asked = await here.bash("echo kept > file; echo up; read line", snapshots=SnapshotPolicy(at_end=False))
    await here.saw(asked, printed("up"))
    older, newer = [await cut(here, asked) for _ in range(2)]
    await here.parts.workspaces.snapshot(older.sandbox_id, "snp_orphan")
    young = sweeper(here)  # in the time a cut may take, it may be on its way
    await young.sweep()
    await young.settled()
    assert "snp_orphan" in {one for one, _ in await here.parts.workspaces.snapshots()}
    await here.parts.workspaces.drop(older.id)
    old = sweeper(here, cut_limit_s=0.0)
    await old.sweep()
    await old.settled()
    assert {one for one, _ in await here.parts.workspaces.snapshots()} == {newer.id}
    assert [one.id for one in await here.parts.snapshots.on_host("here")] == [newer.id]
    read = await here.parts.snapshots.get(newer.id, tenant="default")
    assert (read.digest, read.size_bytes, read.files) == await here.parts.workspaces.digest(newer.id)
    assert older.id in " ".join(str(vars(line)) for line in caplog.records)
