"""What goes: an execution, only its workspace, or a snapshot; each in an order that may be broken off anywhere.

Acts on the ports; whether something may go is `retention`'s to say, and the store's: what is refused there stays. The
record goes before the files, so that nothing is promised that is not there; files that a crash leaves, or that lie on
another host, are found by that host's sweeper. Artifacts go to the shelf before a workspace goes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from orchestrator.errors import CarrelError, Conflict, NotFound
from orchestrator.execution import Execution
from orchestrator.executions import Executions
from orchestrator.shelf import Shelf
from orchestrator.snapshots import Snapshot, Snapshots
from orchestrator.workspace import DiskUse, Files, SnapshotStore

logger = logging.getLogger(__name__)

_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Freed:
    """`size_bytes`: what was held by what is gone, nearly: on a store that shares, what a fork still has counts, too.
    `elsewhere`: hosts on which files are left to the sweeper."""

    size_bytes: int = 0
    elsewhere: frozenset[str] = frozenset()


class Removing:
    """On the host `host`; `workspaces` and `shelf` None: nothing of it is here. `dry`: only what would be freed."""

    def __init__(
        self,
        executions: Executions,
        snapshots: Snapshots,
        workspaces: SnapshotStore | None,
        shelf: Shelf | None,
        *,
        host: str,
    ) -> None:
        self._executions = executions
        self._snapshots = snapshots
        self._workspaces = workspaces
        self._shelf = shelf
        self._host = host

    async def execution(self, execution: Execution, *, dry: bool = False) -> Freed:
        """Record, history, inbox, workspace, artifacts, and its snapshots but for those that others are still to begin
        from. Idempotent. Raises Conflict where it has not ended."""
        taken = await self._of(execution)
        held = [await self._workspace_use(execution), *[await self._snapshot_use(one) for one in taken]]
        freed_bytes = _together(held)
        if dry:
            return Freed(freed_bytes + await self._shelved(execution))
        await self._executions.remove(execution.id)
        elsewhere = {execution.host} if execution.sandbox_id and execution.host else set()
        if self._workspaces is not None and execution.sandbox_id and execution.host in (None, self._host):
            await self._workspaces.remove(execution.sandbox_id)
        for one in taken:
            if await self._is_gone(one):
                elsewhere.add(one.host)
                await self._files_of(one)
        if self._shelf is not None:
            freed_bytes += await self._shelf.remove(execution.id)
        return Freed(freed_bytes, frozenset(elsewhere - {self._host}))

    async def workspace(self, execution: Execution, *, dry: bool = False) -> Freed:
        """Only its files as they are now; what it left as artifacts is kept. Nothing where they are gone. Raises
        Conflict where it has not ended or they lie on another host; DiskFull where the artifacts find no room."""
        if not execution.ended:
            raise Conflict(
                f"{execution.id} is {execution.state}: it works there",
                state=str(execution.state),
                remedy="end it first",
            )
        if execution.sandbox_id is None:
            return Freed()
        if self._workspaces is None or execution.host != self._host:
            raise Conflict(
                f"the workspace of {execution.id} is on host {execution.host}",
                state="elsewhere",
                remedy="ask an api on that host, or leave it to workspace_retention_s",
            )
        held = await self._workspace_use(execution)
        if dry:
            return Freed(_together([held]))
        await self.artifacts(execution)
        await self._workspaces.remove(execution.sandbox_id)
        return Freed(_together([held]))

    async def snapshot(self, snapshot: Snapshot, *, why: str, of: Execution | None = None, dry: bool = False) -> Freed:
        """One; what was begun from it stays as it is. `of`: its execution, where that is still there. Idempotent.
        Raises Conflict while an execution that has not ended would begin from it."""
        held = await self._snapshot_use(snapshot)
        if dry:
            return Freed(_together([held]))
        if of is not None and of.ended:
            await self.artifacts(of)  # this may be the last place that has them
        await self._snapshots.remove(snapshot.id, why=why)
        await self._files_of(snapshot)
        return Freed(_together([held]), frozenset({snapshot.host} - {self._host}))

    async def artifacts(self, execution: Execution) -> None:
        """Onto the shelf, of one that has ended, unless they are there: a worker did it at the end, but not where there
        was none (cancelled in its sleep) or it could not. Raises DiskFull."""
        if self._shelf is None:
            return
        try:
            await self._shelf.kept(execution.id)
        except (NotFound, Conflict):
            files = await self._last_files(execution)
            if files is not None:
                await self._shelf.keep(execution.id, files)

    async def _last_files(self, execution: Execution) -> Files | None:
        if self._workspaces is None:
            return None
        try:
            if execution.sandbox_id and execution.host == self._host:
                return self._workspaces.files(execution.sandbox_id)
        except NotFound:
            pass
        for one in (await self._of(execution))[:1]:
            try:
                return self._workspaces.snapshot_files(one.id)
            except NotFound:
                return None
        return None

    async def _of(self, execution: Execution) -> list[Snapshot]:
        """Its snapshots, newest first."""
        found: list[Snapshot] = []
        cursor = ""
        while True:
            page = await self._snapshots.list(
                tenant=execution.spec.tenant, execution_id=execution.id, cursor=cursor, limit=_PAGE
            )
            found += page.snapshots
            cursor = page.next
            if not cursor:
                return found

    async def _is_gone(self, snapshot: Snapshot) -> bool:
        try:
            await self._snapshots.get(snapshot.id, tenant=snapshot.tenant)
        except NotFound:
            return True
        return False  # another one is still to begin from it

    async def _files_of(self, snapshot: Snapshot) -> None:
        """Its record is gone: so goes all that holds its bytes. What fails is the sweeper's."""
        try:
            if self._workspaces is not None and snapshot.host == self._host:
                await self._workspaces.drop(snapshot.id)
        except CarrelError as failure:
            logger.warning("left to the sweeper", extra={"snapshot": snapshot.id, "why": failure.message})

    async def _shelved(self, execution: Execution) -> int:
        if self._shelf is None:
            return 0
        try:
            return sum(one.size_bytes for one in await self._shelf.kept(execution.id) if one.sha256)
        except (NotFound, Conflict):
            return 0

    async def _workspace_use(self, execution: Execution) -> DiskUse:
        if self._workspaces is None or not execution.sandbox_id or execution.host != self._host:
            return DiskUse(0)
        try:
            return await self._workspaces.disk(execution.sandbox_id)
        except (NotFound, OSError):
            return DiskUse(0)

    async def _snapshot_use(self, snapshot: Snapshot) -> DiskUse:
        if self._workspaces is None or snapshot.host != self._host:
            return DiskUse(0)
        try:
            return await self._workspaces.snapshot_disk(snapshot.id)
        except (NotFound, OSError):
            return DiskUse(0)


def _together(held: list[DiskUse]) -> int:
    """What is free when all of these are gone, of which the largest shares with the others, if they share at all."""
    most = max(held, key=lambda use: use.used_bytes)
    rest = [use for use in held if use is not most]
    first = most.used_bytes if rest or most.alone_bytes is None else most.alone_bytes
    return first + sum(use.used_bytes if use.alone_bytes is None else use.alone_bytes for use in rest)
