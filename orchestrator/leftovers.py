"""What exists on this host that no record names: found by the sweeper's own plan, removed by nobody here.

Only asks; a store that is not up is not started, one that was never prepared is not prepared.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from orchestrator.clock import SystemClock
from orchestrator.drivers.docker import DockerDriver
from orchestrator.drivers.docker_options import Installation
from orchestrator.drivers.engine_calls import EngineCalls
from orchestrator.engine.sweep_plan import SweepPlan, sweep_plan
from orchestrator.sandbox import Found
from orchestrator.settings import Settings
from orchestrator.stores.redis import Keys, RedisExecutions, Server
from orchestrator.workspaces.directory import DirectoryStore


async def plan(settings: Settings, url: str) -> SweepPlan:
    """What a sweep would do now if nothing had a grace. Raises StoreUnavailable, EngineUnavailable."""
    slots_dir = settings.data_dir / "slots"
    found = await _sandboxes(settings, slots_dir) if settings.driver == "docker" else []
    # DirectoryStore makes its folder; looking must not.
    slots = await DirectoryStore(slots_dir).list() if await asyncio.to_thread(slots_dir.is_dir) else []
    server = Server(url, patience_s=2.0)
    try:
        # Read after what exists: a record names its sandbox before that is made.
        records = [record async for record in RedisExecutions(server, Keys(settings.installation)).everything()]
    finally:
        await server.aclose()
    now = SystemClock().now()
    return sweep_plan(found, slots, records, now=now, orphan_grace_s=0, retention_s=settings.retention_s)


async def _sandboxes(settings: Settings, slots_dir: Path) -> list[Found]:
    calls = EngineCalls(settings.docker_host)
    try:
        return list(await DockerDriver(Installation(settings.installation), slots_dir, calls=calls).list())
    finally:
        calls.close()
