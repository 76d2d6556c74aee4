"""What goes, killed between any two steps: nothing is promised that is not there, nothing of others is touched, and
doing it again, or the sweep, comes out as if it had been done once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from orchestrator.errors import Conflict, NotFound
from orchestrator.execution import SnapshotPolicy
from orchestrator.removing import Removing
from orchestrator.snapshots import Why
from orchestrator.stores.redis import Keys, RedisExecutions, RedisSnapshots, Server
from orchestrator.workspaces.directory import DirectoryStore
from orchestrator.workspaces.shelf import DirectoryShelf
from tests.engine.stage import Stage, printed
from tests.engine.test_snapshots import cut
from tests.engine.test_sweeper import sweeper, text

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]
_WATCHED = {"os.rename", "os.remove", "os.rmdir"}


def _die_at(what: str, id: str, folder: Path, redis_url: str, installation: str, left: int) -> None:
    """In a process of its own: one of the verbs, killed at the file operation of that number."""

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if event in _WATCHED:
            left -= 1
            if left == 0:
                os._exit(137)

    async def do() -> None:
        server, keys = Server(redis_url), Keys(installation)
        executions, snapshots = RedisExecutions(server, keys), RedisSnapshots(server, keys)
        store, shelf = DirectoryStore(folder / "slots"), DirectoryShelf(folder / "shelf")
        removing = Removing(executions, snapshots, store, shelf, host="here")
        execution = await executions.get(id)
        if what == "execution":
            await removing.execution(execution)
        else:
            await removing.workspace(execution)

    sys.addaudithook(count)
    asyncio.run(do())


@pytest.mark.parametrize("what", ["execution", "workspace"])
async def test_killed_between_any_two_steps(
    here: Stage, what: str, short_dir: Path, redis_url: str, installation: str
) -> None:
    worker = here.work(sweep_interval_s=3600)
    none = SnapshotPolicy(at_end=False)
    runs = await here.bash("echo mine > artifacts/a; echo up; read line", snapshots=none)
    await here.saw(runs, printed("up"))
    root = here.parts.workspaces.slot("x").path.parent.parent
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    for left in range(1, 60, 1 if what == "workspace" else 2):
        asked = await here.bash("echo left > artifacts/a; echo f > f; echo up; read line", snapshots=none)
        await here.saw(asked, printed("up"))
        taken = await cut(here, asked, why=Why.PERIODIC)
        await here.cancel(asked, 0)
        ended = await here.ended(asked)
        while worker.owned > 1:
            await asyncio.sleep(0.01)
        dying = processes.Process(target=_die_at, args=(what, asked.id, root, redis_url, installation, left))
        dying.start()
        await asyncio.to_thread(dying.join)
        assert dying.exitcode in (0, 137)
        try:
            record = await here.parts.executions.get(asked.id)
        except NotFound:
            record = None
        if what == "workspace":
            assert record is not None
            assert await text(here, asked.id) == {"a": b"left\n"}  # on the shelf all the time
            await here.parts.removing.workspace(record)
            assert not here.parts.workspaces.slot(ended.sandbox_id or "").path.exists()
            assert here.parts.workspaces.snapshot_files(taken.id).stat("f").size_bytes == 2
        elif record is not None:  # as a caller that repeats it
            await here.parts.removing.execution(record)
        else:
            with pytest.raises(NotFound):
                await here.parts.snapshots.get(taken.id, tenant="default")
        if what == "execution":
            swept = sweeper(here, cut_limit_s=0.0)
            await swept.sweep()
            await swept.settled()
            assert not here.parts.workspaces.slot(ended.sandbox_id or "").path.exists()
            assert await here.parts.workspaces.snapshots() == []
            assert [id for id, _ in await here.parts.shelf.list()] == []
        alive = await here.parts.executions.get(runs.id)
        assert (
            not alive.ended and here.parts.workspaces.files(alive.sandbox_id or "").stat("artifacts/a").size_bytes == 5
        )
        if dying.exitcode == 0:
            assert left > 2
            break
    else:
        raise AssertionError("it never came to its end")
    with pytest.raises(Conflict):
        await here.parts.removing.workspace(await here.parts.executions.get(runs.id))
    with pytest.raises(Conflict):
        await here.parts.removing.execution(await here.parts.executions.get(runs.id))
    await here.cancel(runs, 0)
    await here.ended(runs)
