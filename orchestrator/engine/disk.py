"""What a workspace takes, where its store cannot bound it: measured once in a while, and an execution over its limit is
ended. A store that bounds needs none of this: there the writer is told, by its own write.

So a limit that is measured is late by the time between two looks, and by what is written meanwhile.
"""

from __future__ import annotations

from orchestrator.engine.parts import Parts
from orchestrator.errors import NotFound
from orchestrator.workspace import DiskUse


async def over_limit(parts: Parts, sandbox_id: str, limit_bytes: int) -> DiskUse | None:
    """What it takes, if that is more than it may; 0 = no limit."""
    if not limit_bytes or (await parts.workspaces.facts()).limits_disk:
        return None
    try:
        async with parts.hashing:
            use = await parts.workspaces.disk(sandbox_id)
    except NotFound:
        return None
    return DiskUse(use.used_bytes, limit_bytes, use.files) if use.used_bytes > limit_bytes else None
