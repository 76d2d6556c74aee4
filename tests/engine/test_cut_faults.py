"""Cuts that cannot be had: no room, too slow, nothing left to cut. The work goes on, and nothing is half there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.engine.cutting import AT_END_BYTES, new_id
from orchestrator.errors import Conflict
from orchestrator.execution import (
    Execution,
    HibernateWant,
    OutcomeKind,
    PauseWant,
    Reason,
    SnapshotPolicy,
    SnapshotWant,
)
from orchestrator.lifecycle import ExecutionState
from tests.engine.stage import Stage, kinds, printed, soon, stage
from tests.engine.test_hibernate import begin, ledger, sleep
from tests.engine.test_snapshots import content, cut

pytestmark = pytest.mark.root
S = ExecutionState
#: More than the room for snapshots, then as LEDGER.
LARGE = """
head -c 6000000 /dev/urandom > large; echo up $EXECUTION_ATTEMPT
while read m; do echo "$m" >> log; echo "got $m as $(wc -l < log)"; done
"""
#: Takes a while to copy file by file.
MANY = "for i in $(seq 4000); do : > f$i; done; echo up 1; while read m; do echo got $m; done"


@pytest.fixture
async def cramped(redis_url: str, installation: str, short_dir: Path) -> AsyncIterator[Stage]:
    """Room for 4 MiB of snapshots, until `snapshots` is unmounted."""
    kept = short_dir / "snapshots"
    kept.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "carrel-test", str(kept)], check=True)
    try:
        async with stage(redis_url, installation, short_dir) as made:
            yield made
    finally:
        if kept.is_mount():
            subprocess.run(["umount", str(kept)], check=True)
        shutil.rmtree(short_dir, ignore_errors=True)


def room(here: Stage) -> Path:
    return here.parts.workspaces.slot("sbx_any").path.parent.parent / "snapshots"


async def goes_on(here: Stage, execution: Execution, n: int) -> None:
    await here.send(execution, f"m{n}", f"{n}")
    await here.saw(execution, printed(f"got {n}"))
    record = await here.parts.executions.get(execution.id)
    assert record.state is S.RUNNING and record.attempt == 1


async def refused(here: Stage, execution: Execution) -> str:
    """Why a snapshot that was asked for is not there."""
    want = SnapshotWant(new_id())
    await here.parts.executions.want(execution.id, want)
    told = await here.saw(execution, lambda e: e.type.startswith("snapshot.") and e.data["id"] == want.id)
    assert told.type == events.SNAPSHOT_FAILED
    assert (await here.parts.executions.get(execution.id)).wants.snapshots == ()
    return str(told.data["error"])


async def test_no_room(cramped: Stage) -> None:
    here = cramped
    here.work(lease_s=30.0)
    asked = await begin(here, declared=ledger(LARGE))
    assert "no space left for snapshot" in await refused(here, asked)
    assert list(room(here).iterdir()) == [], "nothing half"
    await goes_on(here, asked, 1)
    await here.parts.executions.want(asked.id, HibernateWant("h"))
    await here.saw(asked, lambda event: event.data.get("trigger") == "cut_failed")
    await goes_on(here, asked, 2)
    subprocess.run(["umount", str(room(here))], check=True)
    snapshot = await cut(here, asked)
    assert content(here, snapshot.id, "log") == b"1\n2\n"
    await sleep(here, asked, "again")


async def test_no_room_at_the_end(cramped: Stage) -> None:
    """It ends as it would have, and says that there is none."""
    here = cramped
    here.work(lease_s=30.0)
    asked = await here.bash("head -c 6000000 /dev/urandom > large", snapshots=SnapshotPolicy(at_end=True))
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED and record.snapshot_id is None
    (told,) = [event for event in await here.history(asked) if event.type.startswith("snapshot.")]
    assert told.type == events.SNAPSHOT_FAILED and "no space left" in told.data["error"]


async def test_it_stands_still_for_so_long_and_no_longer(here: Stage) -> None:
    here.work(lease_s=30.0, cut_limit_s=0.01)
    asked = await begin(here, declared=ledger(MANY))
    assert "stood still" in await refused(here, asked)
    await goes_on(here, asked, 1)
    await here.parts.executions.want(asked.id, HibernateWant("h"))
    failed = await here.saw(asked, lambda event: event.data.get("trigger") == "cut_failed")
    assert failed.data["to"] == S.RUNNING
    await goes_on(here, asked, 2)

    async def nothing_left() -> bool:
        return not room(here).exists() or not list(room(here).iterdir())

    await soon(nothing_left)  # the copies end in their threads, and get no name


async def test_what_was_dropped_gets_no_name(everywhere: Stage) -> None:
    here = everywhere
    store = here.parts.workspaces
    await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    store.files("sbx_a").write("x", [b"1"])
    with pytest.raises(Conflict) as caught:
        await store.snapshot("sbx_a", "snp_1", still=lambda: False)
    assert caught.value.data["state"] == "unwanted"
    assert await store.snapshots() == [] and list(room(here).iterdir()) == []
    await store.snapshot("sbx_a", "snp_1", still=lambda: True)
    assert content(here, "snp_1", "x") == b"1"


async def test_asleep_by_itself_with_its_files_gone(here: Stage) -> None:
    """Nothing to cut, and nothing to sleep on: it is lost, by name."""
    here.work(lease_s=30.0)
    asked = await begin(here, declared=ledger("echo up 1; read m; exit 75"))
    record = await here.parts.executions.get(asked.id)
    shutil.rmtree(here.parts.workspaces.slot(record.sandbox_id or "").path / "vol")
    await here.send(asked, "1", "sleep")
    record = await here.ended(asked)
    history = await here.history(asked)
    assert [e.data["trigger"] for e in history if e.type == events.STATE][-1] == "cut_abandoned"
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.reason) == (OutcomeKind.LOST, Reason.SANDBOX_LOST)
    assert "workspace is gone" in record.outcome.message
    assert events.SNAPSHOT_FAILED in kinds(history)


async def test_at_the_end_where_it_costs_nothing(everywhere: Stage) -> None:
    """A large workspace is kept by a store that takes no time for it, and by no other unless it is asked to."""
    here = everywhere
    here.work(lease_s=30.0)
    instant = (await here.parts.workspaces.facts()).instant
    size = AT_END_BYTES + (1 << 20)
    record = await here.ended(await here.bash(f"fallocate -l {size} large"))
    assert (record.snapshot_id is not None) is instant
    if not instant:
        small = await here.ended(await here.bash("echo 1 > small"))
        assert small.snapshot_id is not None


async def test_of_what_fell_asleep_paused(everywhere: Stage) -> None:
    """From PAUSED to sleep and back: woken by a resume, in its files, on each store."""
    here = everywhere
    worker = here.work(lease_s=30.0)
    asked = await begin(here)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    await here.parts.executions.want(asked.id, PauseWant("p", True))
    await here.until(asked, lambda record: record.state is S.PAUSED)
    slept = await sleep(here, asked)
    await here.idle(worker)
    here.parts.workspaces.snapshot_files(slept.snapshot_id or "").stat("log")
    await here.parts.executions.want(asked.id, PauseWant("r", False))
    await here.saw(asked, printed("up 2"))
    await here.send(asked, "2", "two")
    await here.saw(asked, printed("got two as 2"))
