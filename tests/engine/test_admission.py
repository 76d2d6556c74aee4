"""A disk that fills: nothing new is begun on its host, what runs goes on, and what waits begins by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.engine.cutting import new_id
from orchestrator.errors import NotFound
from orchestrator.execution import OutcomeKind, SnapshotPolicy, SnapshotWant
from orchestrator.lifecycle import ExecutionState
from orchestrator.room import FACT, Mark, Place
from orchestrator.workspaces.directory import DirectoryStore
from orchestrator.workspaces.rooms import DiskRooms
from tests.engine.stage import Stage, printed, stage, stdout
from tests.small_disks import MIB, SmallDisk, small_disk

pytestmark = pytest.mark.root
S = ExecutionState
NEVER = SnapshotPolicy(at_end=False)
TALKER = "echo up; while read m; do echo got $m; echo $m >> log; done"
MARKED = {Place.WORKSPACES: Mark(16 * MIB)}


@dataclass
class Tight:
    """A stage whose workspaces lie on a small disk of their own."""

    here: Stage
    disk: SmallDisk

    def fill(self) -> None:
        """Below the mark, with room left for what runs."""
        self.disk.fill(leave_bytes=12 * MIB)

    async def told(self, *, short: bool) -> None:
        """Wait until the host says so."""
        while [bool(host.facts.get(FACT)) for host in await self.here.parts.executions.hosts()] != [short]:
            await asyncio.sleep(0.01)


@pytest.fixture
async def tight(redis_url: str, installation: str, short_dir: Path) -> AsyncIterator[Tight]:
    with small_disk(short_dir) as disk:
        store = DirectoryStore(disk.point / "slots")
        async with stage(redis_url, installation, short_dir / "s", workspaces=store) as here:
            here.parts = replace(here.parts, rooms=DiskRooms(store, {}, MARKED))
            yield Tight(here, disk)


async def test_what_runs_goes_on_and_what_is_new_waits_until_there_is_room(tight: Tight) -> None:
    here = tight.here
    here.work()
    runs = await here.bash(TALKER, stdin="text", snapshots=NEVER)
    await here.saw(runs, printed("up"))
    await tight.told(short=False)
    tight.fill()
    await tight.told(short=True)
    (host,) = await here.parts.executions.hosts()
    assert host.facts[FACT].startswith("workspaces: ") and "workspaces_low" in host.facts[FACT]
    waits = await here.bash("echo begun", snapshots=NEVER)
    await here.send(runs, "m1", "hello")
    await here.saw(runs, printed("got hello"))
    assert (await here.parts.executions.get(waits.id)).state is S.QUEUED
    tight.disk.empty()
    assert stdout(await here.history(await here.ended(waits))) == b"begun\n"
    await tight.told(short=False)


async def test_what_lives_there_is_adopted_all_the_same(tight: Tight) -> None:
    here = tight.here
    first = here.work()
    runs = await here.bash(TALKER, stdin="text", snapshots=NEVER)
    await here.saw(runs, printed("up"))
    tight.fill()
    await tight.told(short=True)
    before = [await here.bash("true", snapshots=NEVER) for _ in range(3)]
    await here.stop(first)
    here.work()
    await here.saw(runs, lambda event: event.type == events.ADOPTED)
    await here.send(runs, "m1", "again")
    await here.saw(runs, printed("got again"))
    assert {(await here.parts.executions.get(one.id)).state for one in before} == {S.QUEUED}


async def test_what_is_to_end_needs_no_room(tight: Tight) -> None:
    here = tight.here
    tight.fill()
    here.work()
    await tight.told(short=True)
    waits = await here.bash("true", snapshots=NEVER)
    await here.cancel(waits)
    done = await here.ended(waits)
    assert done.outcome is not None and done.outcome.kind is OutcomeKind.CANCELLED


async def test_a_snapshot_is_refused_by_name_and_the_next_one_works(tight: Tight) -> None:
    here = tight.here
    here.work()
    runs = await here.bash(TALKER, stdin="text", snapshots=NEVER)
    await here.saw(runs, printed("up"))
    tight.fill()
    await tight.told(short=True)
    refused = SnapshotWant(new_id())
    await here.parts.executions.want(runs.id, refused)
    told = await here.saw(runs, lambda event: event.type == events.SNAPSHOT_FAILED)
    assert "workspaces_low" in told.data["error"]
    with pytest.raises(NotFound):
        await here.parts.snapshots.get(refused.id, tenant="default")
    assert await here.parts.workspaces.snapshots() == []
    await here.send(runs, "m1", "on")
    await here.saw(runs, printed("got on"))
    tight.disk.empty()
    await tight.told(short=False)
    wanted = SnapshotWant(new_id())
    await here.parts.executions.want(runs.id, wanted)
    await here.saw(runs, lambda event: event.type == events.SNAPSHOT_CREATED)
    assert [there for there, _ in await here.parts.workspaces.snapshots()] == [wanted.id]


async def test_a_disk_that_fills_while_it_is_cut_leaves_no_half_snapshot(tight: Tight) -> None:
    """Below no mark, and yet too little for the copy."""
    here = tight.here
    here.parts = replace(here.parts, rooms=None)
    here.work()
    runs = await here.bash(f"head -c {20 * MIB} /dev/urandom > big; {TALKER}", stdin="text", snapshots=NEVER)
    await here.saw(runs, printed("up"))
    tight.disk.fill(leave_bytes=8 * MIB)
    for _ in range(2):
        before = (await here.parts.executions.get(runs.id)).tail
        await here.parts.executions.want(runs.id, SnapshotWant(new_id()))
        told = await here.saw(runs, lambda e, seq=before: e.type == events.SNAPSHOT_FAILED and e.seq > seq)  # type: ignore[misc]
        assert "no space left" in told.data["error"]
        assert await here.parts.workspaces.snapshots() == []
        await here.send(runs, f"m{before}", f"on {before}")
        await here.saw(runs, printed(f"got on {before}"))
    tight.disk.empty()
    await here.parts.executions.want(runs.id, SnapshotWant(new_id()))
    await here.saw(runs, lambda event: event.type == events.SNAPSHOT_CREATED)
    assert len(await here.parts.workspaces.snapshots()) == 1
    assert list((tight.disk.point / "snapshots").glob(".new-*")) == []


async def test_the_disk_is_full_to_its_last_byte(tight: Tight) -> None:
    """What runs sees `no space left` from its own writes, and nothing else; nothing of it is lost."""
    here = tight.here
    here.work()
    writer = "echo up; until echo line >> log; do sleep 0.02; done; read m; until echo $m >> log; do sleep 0.02; done"
    runs = await here.bash(f"{writer}; cat log", stdin="text", snapshots=NEVER)
    await here.saw(runs, printed("up"))
    tight.disk.fill(leave_bytes=0)
    await here.send(runs, "m1", "kept")
    waits = await here.bash("echo begun", snapshots=NEVER)
    await tight.told(short=True)
    tight.disk.empty()
    done = await here.ended(runs)
    assert done.outcome is not None and done.outcome.kind is OutcomeKind.SUCCEEDED
    assert stdout(await here.history(done)).endswith(b"line\nkept\n")
    assert stdout(await here.history(await here.ended(waits))) == b"begun\n"
