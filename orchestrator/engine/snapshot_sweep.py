"""Sets right what crashes left of snapshots on this host, and reads new ones: what they hold, and its digest.

Several workers of a host may do the same twice. Decides nothing (`sweep_plan`); every removal is logged.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final

from orchestrator.engine.parts import Parts
from orchestrator.engine.sweep_plan import snapshot_plan
from orchestrator.errors import CarrelError, Conflict, NotFound, Unavailable
from orchestrator.snapshots import Snapshot

logger = logging.getLogger(__name__)

READ_AT_ONCE: Final = 16  # of one sweep; the others are the next one's


async def sweep_snapshots(parts: Parts, *, trusted: bool) -> None:
    """Once, now. `trusted`: the store knows something, so that what it does not name is nobody's. Raises
    Unavailable."""
    there = await parts.workspaces.snapshots()
    records = await parts.snapshots.on_host(parts.settings.host)
    grace_s = parts.settings.orphan_grace_s + parts.settings.cut_limit_s
    plan = snapshot_plan(there, records, now=parts.clock.now(), orphan_grace_s=grace_s)
    if trusted:
        elsewhere = {one.id for one in await parts.snapshots.some(plan.orphans)}  # copies, fetched to begin from
        fresh = parts.clock.now() - timedelta(seconds=parts.settings.fetched_keep_s)
        young = {snapshot_id for snapshot_id, made_at in there if made_at > fresh}
        for snapshot_id in plan.orphans:
            if snapshot_id in elsewhere and snapshot_id in young:
                continue
            logger.warning("removing a snapshot no record names", extra={"snapshot": snapshot_id})
            try:
                await parts.workspaces.drop(snapshot_id)
            except CarrelError as failure:
                logger.warning("could not be removed", extra={"snapshot": snapshot_id, "why": str(failure)})
    elif plan.orphans:
        logger.error("the store knows no execution, but there are snapshots here: nothing is removed")
    for snapshot in plan.gone:
        await _forget(parts, snapshot)
    for snapshot in plan.unread[:READ_AT_ONCE]:
        await _read(parts, snapshot)


async def _forget(parts: Parts, snapshot: Snapshot) -> None:
    about = {"snapshot": snapshot.id, "execution": snapshot.execution_id}
    try:
        await parts.snapshots.remove(snapshot.id, why="files_gone")
        logger.error("a snapshot's files are gone: its record is removed", extra=about)
    except Conflict:  # whoever begins from it is told so, by name
        logger.error("a snapshot's files are gone, and an execution would begin from it", extra=about)


async def _read(parts: Parts, snapshot: Snapshot) -> None:
    try:
        async with parts.hashing:
            digest, size_bytes, files = await parts.workspaces.digest(snapshot.id)
        await parts.snapshots.measured(snapshot.id, digest=digest, size_bytes=size_bytes, files=files)
    except NotFound:
        return  # removed meanwhile
    except Unavailable:
        raise
    except (CarrelError, OSError) as failure:
        logger.warning("a snapshot could not be read", extra={"snapshot": snapshot.id, "why": str(failure)})
