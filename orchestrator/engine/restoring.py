"""Which snapshot the next attempt begins from, where the workspace itself is gone: the newest that is whole.

One whose digest was computed is read whole and compared; one that is not what it was is refused by name, and the one
before it is taken. A fork has its own first, then the one it was forked from. Writes nothing.
One that is not on this host, or not whole here, is fetched from the archive first.
"""

from __future__ import annotations

import logging
from typing import Final

from orchestrator import events
from orchestrator.engine.archiving import fetch
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.parts import Parts
from orchestrator.errors import CarrelError, DiskFull, NotFound, Unavailable
from orchestrator.events import Entry
from orchestrator.execution import Execution
from orchestrator.snapshots import Snapshot

logger = logging.getLogger(__name__)

_LOOKED_AT: Final = 100  # the newest so many


async def survives(parts: Parts, execution: Execution) -> bool:
    """Another attempt would find earlier work: its workspace on this host, or a snapshot's files."""
    if execution.sandbox_id is not None and await parts.workspaces.holds(execution.sandbox_id):
        return True
    here = {snapshot_id for snapshot_id, _ in await parts.workspaces.snapshots()}
    return any(snapshot.id in here or snapshot.archived for snapshot in await _known(parts, execution))


async def newest_whole(parts: Parts, execution: Execution) -> tuple[Snapshot | None, list[Entry]]:
    """The snapshot to begin from, or None; and what is told of those that are not whole."""
    here = {snapshot_id for snapshot_id, _ in await parts.workspaces.snapshots()}
    host = parts.settings.host
    known = [one for one in await _known(parts, execution) if one.id in here or one.archived or one.host == host]
    told: list[Entry] = []
    for at, snapshot in enumerate(known):
        detail = await _what_is_wrong(parts, snapshot, snapshot.id in here)
        if not detail:
            return snapshot, told
        instead = known[at + 1].id if at + 1 < len(known) else ""
        logger.error("a snapshot is not whole", extra={"snapshot": snapshot.id, "why": detail, "instead": instead})
        told.append(Entry(events.SNAPSHOT_CORRUPT, {"id": snapshot.id, "detail": detail, "instead": instead}))
    return None, told


async def _what_is_wrong(parts: Parts, snapshot: Snapshot, here: bool) -> str:
    """With its files, here by now, "" = nothing. Raises Unavailable: whether it is whole is not known."""
    detail = await _damage(parts, snapshot) if here else "its files are not there any more"
    if not detail or not snapshot.archived:
        return detail
    if here:
        logger.error("a snapshot is not whole here; fetching it", extra={"snapshot": snapshot.id, "why": detail})
        await parts.workspaces.drop(snapshot.id)
    if parts.archive is None:
        raise Unavailable(f"{snapshot.id} is in the archive, and this worker has none", remedy="set archive_url")
    try:
        async with parts.hashing:
            await fetch(parts, parts.archive, snapshot)
    except DiskFull as full:  # it is whole, and will be fetched when there is room
        raise Unavailable(f"{snapshot.id} cannot be fetched: {full.message}", retry_after_s=30) from full
    except Unavailable:
        raise
    except (CarrelError, OSError) as failure:
        return f"{detail}, and from the archive: {failure}"
    crash_point("after_fetch")
    damage = await _damage(parts, snapshot)
    if damage:
        await parts.workspaces.drop(snapshot.id)
    return damage


async def _known(parts: Parts, execution: Execution) -> list[Snapshot]:
    """Newest first."""
    tenant, origin = execution.spec.tenant, execution.spec.origin
    page = await parts.snapshots.list(tenant=tenant, execution_id=execution.id, limit=_LOOKED_AT)
    known = list(page.snapshots)
    if origin is not None:
        try:
            known.append(await parts.snapshots.get(origin.snapshot_id, tenant=tenant))
        except NotFound:
            logger.warning("what it was forked from is gone", extra={"snapshot": origin.snapshot_id})
    return known


async def _damage(parts: Parts, snapshot: Snapshot) -> str:
    """What is wrong with its files, "" = nothing, as far as anybody can tell."""
    if not snapshot.digest:
        return ""
    try:
        async with parts.hashing:
            digest, _, _ = await parts.workspaces.digest(snapshot.id)
    except (CarrelError, OSError) as failure:
        return f"it cannot be read: {failure}"
    if digest == snapshot.digest:
        return ""
    return f"its content has the digest {digest}, and had {snapshot.digest} when it was taken"
