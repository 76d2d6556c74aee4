"""What has had its time goes: ended executions, their workspaces, snapshots by their policies, artifacts of nobody.

Decides nothing (`retention`); every removal is logged, and told in the history where that goes on. One that fails is
logged and tried again by the next sweep.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Collection, Sequence
from datetime import datetime, timedelta

from orchestrator.engine.parts import Parts
from orchestrator.errors import CarrelError, Conflict, Unavailable
from orchestrator.execution import Execution
from orchestrator.removing import Freed
from orchestrator.retention import all_snapshots_over, executions_over, workspaces_over
from orchestrator.snapshots import Snapshot

logger = logging.getLogger(__name__)


async def sweep_by_policy(
    parts: Parts, records: Sequence[Execution], snapshots: Sequence[Snapshot], *, here: Collection[str]
) -> None:
    """Once, now. `records`: all there are, read after `snapshots`. `here`: the slots of this host. Raises
    Unavailable."""
    now, settings, removing = parts.clock.now(), parts.settings, parts.removing
    by_id = {record.id: record for record in records}
    over = executions_over(records, snapshots, now=now, retention_s=settings.retention_s)
    for execution_id in over:
        what = "removed a finished execution: its time is over"
        await _say(removing.execution(by_id[execution_id]), what, execution=execution_id)
    left = [record for record in records if record.id not in set(over)]
    for record in workspaces_over(left, now=now, retention_s=settings.workspace_retention_s):
        if record.host == settings.host and record.sandbox_id in here:
            what = "removed the workspace of a finished execution: its time is over"
            await _say(removing.workspace(record), what, execution=record.id, sandbox=record.sandbox_id)
    known = {snapshot.id: snapshot for snapshot in snapshots}
    for snapshot_id in all_snapshots_over(left, [one for one in snapshots if one.execution_id not in set(over)]):
        snapshot = known[snapshot_id]
        going = removing.snapshot(snapshot, why="policy", of=by_id.get(snapshot.execution_id))
        what = "removed a snapshot: its policy keeps others"
        await _say(going, what, snapshot=snapshot_id, execution=snapshot.execution_id)


async def sweep_shelf(parts: Parts, shelved: Sequence[tuple[str, datetime]], records: Sequence[Execution]) -> None:
    """Artifacts whose execution's record is gone. `records`: some, and all there are, read after `shelved`."""
    known = {record.id for record in records}
    old = parts.clock.now() - timedelta(seconds=parts.settings.orphan_grace_s)
    for execution_id, came_at in shelved:
        if execution_id not in known and came_at <= old:
            await parts.shelf.remove(execution_id)
            logger.warning("removed artifacts of an execution no record names", extra={"execution": execution_id})


async def _say(removing: Awaitable[Freed], what: str, **about: str | None) -> None:
    try:
        freed = await removing
    except Unavailable:
        raise
    except Conflict as kept:  # somebody has begun from it meanwhile
        logger.info("not removed", extra={**about, "why": kept.message})
    except (CarrelError, OSError) as failure:
        logger.warning("could not be removed", extra={**about, "why": str(failure)})
    else:
        logger.info(what, extra={**about, "size_bytes": freed.size_bytes})
