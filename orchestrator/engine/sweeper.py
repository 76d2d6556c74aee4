"""Sets right what crashes left: sandboxes and slots nobody's record names, hosts that fell silent, indexes, old blobs.

One per worker, at a jittered period; several at once only do the same twice. All decisions are `sweep_plan`'s; every
removal and repair is logged. What is not known for certain (an engine or a store that does not answer) is left alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final

from orchestrator.engine.archive_sweep import ArchiveSweep
from orchestrator.engine.parts import Parts
from orchestrator.engine.retention_sweep import sweep_by_policy, sweep_shelf
from orchestrator.engine.snapshot_sweep import sweep_snapshots
from orchestrator.engine.sweep_plan import sweep_plan
from orchestrator.errors import CarrelError, Unavailable
from orchestrator.execution import Execution
from orchestrator.sandbox import Found

logger = logging.getLogger(__name__)

BLOB_GRACE_S: Final = 24 * 3600.0  # a blob is uploaded before the submit that names it
_FULL_EVERY: Final = 20  # sweeps: reading every record is for the rare one, unless there are few slots
_FEW_SLOTS: Final = 200


class Sweeper:
    """`run` until cancelled."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._count = 0
        self._trusted = False  # the store knows at least one execution
        self._beside: dict[str, asyncio.Task[None]] = {}
        self._archive = ArchiveSweep(parts)

    async def run(self) -> None:
        interval_s = self._parts.settings.sweep_interval_s
        try:
            while True:
                try:
                    await self.sweep()
                except Unavailable as away:
                    logger.warning("no sweep: a part does not answer", extra={"why": str(away)})
                except Exception:
                    logger.exception("a sweep failed")
                await asyncio.sleep(interval_s * random.uniform(0.75, 1.25))
        finally:
            for task in self._beside.values():
                task.cancel()
            await asyncio.gather(*self._beside.values(), return_exceptions=True)

    async def sweep(self) -> None:
        """Once, now. Raises Unavailable: nothing more was done then."""
        await self._evict_silent_hosts()
        for repair in await self._parts.executions.repair():
            logger.warning(
                "repaired", extra={"what": repair.what, "execution": repair.execution_id, "detail": repair.detail}
            )
        found = await self._parts.driver.list()
        slots = await self._parts.workspaces.list()
        full = self._count % _FULL_EVERY == 0 or len(slots) <= _FEW_SLOTS
        self._count += 1
        if full:
            await self._sweep_all(found, slots)
            self._begin("snapshots", self._sweep_snapshots)
            self._begin("archive", self._sweep_archive)
            return
        for box in found:  # only what no record names is worth reading all of them
            if await self._parts.executions.owner_of_sandbox(box.sandbox_id) is None:
                await self._sweep_all(found, [])
                return

    async def _sweep_all(self, found: Sequence[Found], slots: Sequence[tuple[str, datetime]]) -> None:
        parts = self._parts
        snapshots = [snapshot async for snapshot in parts.snapshots.everything()]
        shelved = await parts.shelf.list()
        records: list[Execution] = [record async for record in parts.executions.everything()]
        self._trusted = bool(records)
        plan = sweep_plan(
            found,
            slots,
            records,
            now=parts.clock.now(),
            orphan_grace_s=parts.settings.orphan_grace_s,
        )
        if plan.distrusted:
            logger.error("the store knows no execution, but there are sandboxes or slots here: nothing is removed")
            return
        for sandbox_id in plan.sandboxes:
            # Asked again, this very one: a record may have been read before it came to name this sandbox.
            if await parts.executions.owner_of_sandbox(sandbox_id) is None:
                logger.warning("removing a sandbox no record names", extra={"sandbox": sandbox_id})
                await self._carefully(parts.driver.remove(sandbox_id), sandbox_id)
        for slot in plan.slots:
            if await parts.executions.owner_of_sandbox(slot) is None:
                logger.warning("removing a slot no record names", extra={"sandbox": slot})
                await self._carefully(self._remove_slot(slot), slot)
        for slot in plan.stale:
            if await asyncio.to_thread(parts.workspaces.slot(slot).spool.exists):
                logger.info("removing the spool of an execution that has ended", extra={"sandbox": slot})
                await self._carefully(parts.workspaces.strip(slot), slot)
        await sweep_by_policy(parts, records, snapshots, here={slot for slot, _ in slots})
        await sweep_shelf(parts, shelved, records)
        keep = frozenset(
            sha256
            for record in records
            if not record.ended
            for sha256 in (record.spec.archive, *(file.sha256 for file in record.spec.files))
        )
        if gone := await parts.blobs.expire(keep, BLOB_GRACE_S):
            logger.info("removed blobs nobody names", extra={"count": gone})

    async def _remove_slot(self, slot: str) -> None:
        await self._parts.driver.remove(slot)  # nothing may run in what is taken away
        await self._parts.workspaces.remove(slot)

    @property
    def archive_failure(self) -> str:
        """Why the archive took the last thing not, "" = it did."""
        return self._archive.failure

    def _begin(self, name: str, sweep: Callable[[], Awaitable[None]]) -> None:
        """Beside the sweeps: reading and sending gigabytes shall not keep the next one from coming."""
        if name not in self._beside or self._beside[name].done():
            self._beside[name] = asyncio.create_task(self._to_its_end(name, sweep), name=f"{name}-sweep")

    async def _to_its_end(self, name: str, sweep: Callable[[], Awaitable[None]]) -> None:
        try:
            await sweep()
        except Unavailable as away:
            logger.warning("not swept: a part does not answer", extra={"what": name, "why": str(away)})
        except Exception:
            logger.exception("a sweep failed", extra={"what": name})

    async def _sweep_snapshots(self) -> None:
        await sweep_snapshots(self._parts, trusted=self._trusted)

    async def _sweep_archive(self) -> None:
        await self._archive.sweep(trusted=self._trusted)

    async def settled(self) -> None:
        """What the last sweep began beside it is done."""
        await asyncio.gather(*self._beside.values())

    async def _evict_silent_hosts(self) -> None:
        settings = self._parts.settings
        for host in await self._parts.executions.hosts():
            if host.name != settings.host and host.silent_s > settings.host_lost_after_s:
                for execution_id in await self._parts.executions.evict(host.name):
                    logger.warning("its host is lost", extra={"execution": execution_id, "host": host.name})

    async def _carefully(self, removing: Awaitable[None], sandbox_id: str) -> None:
        try:
            await removing
        except CarrelError as failure:
            logger.warning("could not be removed", extra={"sandbox": sandbox_id, "why": str(failure)})
