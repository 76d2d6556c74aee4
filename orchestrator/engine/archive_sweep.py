"""The archive, seen to beside the sweeps: what is new here goes there, what nobody needs any more leaves it.

Several workers may do the same twice. Decides nothing (`archive_plan`). An archive that is full or away is said so,
and tried again with the next sweep: the work does not wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

from orchestrator.archive import HISTORIES, SNAPSHOTS, Archive, Stored
from orchestrator.engine.archive_plan import archive_plan, to_send
from orchestrator.engine.archiving import send
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.parts import Parts
from orchestrator.errors import ArchiveUnavailable, CarrelError, DiskFull, NotFound, StoreUnavailable
from orchestrator.events import Cursor
from orchestrator.execution import Execution
from orchestrator.history import Page

logger = logging.getLogger(__name__)


class ArchiveSweep:
    """Of one worker. `failure`: why the archive took the last thing not, "" = it did."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tidied_at = float("-inf")
        self.failure = ""

    async def sweep(self, *, trusted: bool) -> None:
        """Once, now. `trusted`: the store knows something, so that what it does not name is nobody's. Raises
        StoreUnavailable."""
        parts = self._parts
        archive, histories = parts.archive, parts.histories
        if archive is None:
            return
        try:
            await self._send(archive)
            if histories is not None and parts.settings.history_archive_after_s:
                await self._hand_over()
            now = parts.clock.monotonic()
            if now - self._tidied_at >= parts.settings.archive_tidy_s:
                await self._tidy(archive, trusted=trusted)
                self._tidied_at = now
            self.failure = ""
        except (ArchiveUnavailable, DiskFull) as failure:
            self.failure = failure.message
            logger.error("the archive takes nothing now", extra={"code": failure.code, "why": failure.message})

    async def _send(self, archive: Archive) -> None:
        parts = self._parts
        here = {snapshot_id for snapshot_id, _ in await parts.workspaces.snapshots()}
        for snapshot in to_send(await parts.snapshots.on_host(parts.settings.host), here):
            try:
                await send(parts, archive, snapshot)
            except (ArchiveUnavailable, DiskFull, StoreUnavailable):
                raise
            except NotFound:
                continue  # removed meanwhile
            except (CarrelError, OSError) as failure:
                logger.warning("a snapshot was not archived", extra={"snapshot": snapshot.id, "why": str(failure)})

    async def _hand_over(self) -> None:
        parts = self._parts
        before = parts.clock.now() - timedelta(seconds=parts.settings.history_archive_after_s)
        async for record in parts.executions.everything():
            if record.finished_at is None or record.finished_at > before or record.history_archived:
                continue
            try:
                assert parts.histories is not None
                await parts.histories.keep(record.id, _pages(parts, record))
                crash_point("after_history_archived")
                await parts.history.hand_over(record.id)
            except NotFound:
                continue  # removed meanwhile
            logger.info("its history is in the archive", extra={"execution": record.id, "events": record.tail})

    async def _tidy(self, archive: Archive, *, trusted: bool) -> None:
        parts = self._parts
        await asyncio.to_thread(archive.tidy, parts.clock.now())
        there = await asyncio.to_thread(_listed, archive)
        snapshots = [snapshot async for snapshot in parts.snapshots.everything()]
        executions = {record.id async for record in parts.executions.everything()}
        grace_s = parts.settings.orphan_grace_s + parts.settings.cut_limit_s
        plan = archive_plan(there, snapshots, executions, now=parts.clock.now(), grace_s=grace_s)
        for snapshot_id in plan.lost:
            logger.error("a snapshot is not in the archive any more", extra={"snapshot": snapshot_id})
            try:
                await parts.snapshots.archived(snapshot_id, False)
            except NotFound:
                continue
        if plan.orphans and not (trusted and executions):
            logger.error("the store knows no execution, but there is something in the archive: nothing is removed")
            return
        for name in plan.orphans:
            logger.info("removing from the archive what no record names", extra={"object": name})
            await asyncio.to_thread(archive.remove, name)


def _listed(archive: Archive) -> list[Stored]:
    return [*archive.list(SNAPSHOTS), *archive.list(HISTORIES)]


async def _pages(parts: Parts, record: Execution) -> AsyncIterator[Page]:
    cursor = Cursor()
    while True:
        page = await parts.history.read(record.id, cursor)
        yield page
        if page.closed or not page.events:
            return
        cursor = page.next
