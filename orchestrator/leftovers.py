"""What exists on this host that no record names: found by the sweeper's own plan, removed by nobody here.

Only asks; a store that is not up is not started, one that was never prepared is not prepared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from orchestrator.clock import SystemClock
from orchestrator.engine.sweep_plan import SweepPlan, sweep_plan
from orchestrator.room import Place, Room
from orchestrator.sandbox import Found
from orchestrator.settings import Settings
from orchestrator.stores.redis import Keys, RedisExecutions, Server
from orchestrator.workspaces.choice import Choice, choose
from orchestrator.workspaces.rooms import DiskRooms


def chosen(settings: Settings) -> Choice:
    """Where workspaces lie, or would: nothing is made or mounted. Raises BadInput."""
    return choose(
        settings.workspace_store,
        settings.data_dir,
        label=f"carrel-{settings.installation}",
        btrfs_path=settings.btrfs_path,
        size_bytes=settings.pool_size_bytes,
        allocate=settings.pool_allocate,
    )


def folders(settings: Settings) -> Mapping[Place, Path]:
    """The places on this host that are folders, besides the workspaces."""
    found = {Place.DATA: settings.data_dir}
    if not settings.redis_url:
        found[Place.STORE] = settings.data_dir / "redis"
    archive = urlsplit(settings.archive_url)
    if archive.scheme == "file":
        found[Place.ARCHIVE] = Path(unquote(archive.path))
    return found


async def rooms(settings: Settings) -> Sequence[Room]:
    """As they are now; nothing is made or mounted. Raises BadInput for a store of workspaces that cannot be had."""
    here = chosen(settings)
    there = here.kind == "directory" or here.pool is None or await asyncio.to_thread(here.root.is_mount)
    return await DiskRooms(here.store() if there else None, folders(settings), settings.marks).measure()


async def plan(settings: Settings, url: str) -> SweepPlan:
    """What a sweep would do now if nothing had a grace. Raises StoreUnavailable, EngineUnavailable,
    BadInput for a store of workspaces that cannot be had."""
    here = chosen(settings)
    slots_dir = here.slots
    found = await _sandboxes(settings, slots_dir) if settings.driver == "docker" else []
    # A pool that is not mounted has nothing here, and looking does not mount it.
    slots = await here.store().list() if await asyncio.to_thread(slots_dir.is_dir) else []
    server = Server(url, patience_s=2.0)
    try:
        # Read after what exists: a record names its sandbox before that is made.
        records = [record async for record in RedisExecutions(server, Keys(settings.installation)).everything()]
    finally:
        await server.aclose()
    return sweep_plan(found, slots, records, now=SystemClock().now(), orphan_grace_s=0)


async def _sandboxes(settings: Settings, slots_dir: Path) -> list[Found]:
    from orchestrator.drivers.docker import DockerDriver
    from orchestrator.drivers.docker_options import Installation
    from orchestrator.drivers.engine_calls import EngineCalls

    calls = EngineCalls(settings.docker_host)
    try:
        return list(await DockerDriver(Installation(settings.installation), slots_dir, calls=calls).list())
    finally:
        calls.close()
