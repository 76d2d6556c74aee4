"""Live bytes on the same host: an execution's name to its init's socket and its files, both through their ports.

Opened directly, not through a worker: a worker's death is not even noticed. Knows no path, no address, no frame.
"""

from __future__ import annotations

from orchestrator.errors import Conflict, NotFound, Unavailable
from orchestrator.execution import Execution
from orchestrator.lifecycle import ExecutionState
from orchestrator.sandbox import Duplex, SandboxDriver
from orchestrator.snapshots import Snapshot
from orchestrator.workspace import Files, SnapshotStore

#: States in which a sandbox's init may listen. STARTING: it may not yet; the dial then says so.
_ALIVE = frozenset(
    {
        ExecutionState.STARTING,
        ExecutionState.RUNNING,
        ExecutionState.PAUSED,
        ExecutionState.HIBERNATING,
        ExecutionState.STOPPING,
    }
)


class LocalReach:
    """The port Reach for executions whose sandbox is on `host`, this one."""

    def __init__(self, driver: SandboxDriver, workspaces: SnapshotStore, host: str) -> None:
        self._driver = driver
        self._workspaces = workspaces
        self._host = host

    async def open(self, execution: Execution) -> Duplex:
        if execution.state not in _ALIVE or execution.sandbox_id is None:
            raise Conflict(
                f"{execution.id} is {execution.state}: it has no living sandbox",
                state=str(execution.state),
                remedy=_remedy(execution.state),
            )
        self._check_host(execution)
        return await self._driver.connect(execution.sandbox_id)

    async def files(self, execution: Execution) -> Files:
        if execution.sandbox_id is None:
            raise Conflict(
                f"{execution.id} has no workspace yet", state=str(execution.state), remedy="wait until it has started"
            )
        self._check_host(execution)
        try:
            return self._workspaces.files(execution.sandbox_id)
        except NotFound as error:
            raise Conflict(
                f"the workspace of {execution.id} is not there",
                state=str(execution.state),
                remedy="wait until it has started; if it has ended, its files were removed",
            ) from error

    async def snapshot_files(self, snapshot: Snapshot) -> Files:
        try:
            return self._workspaces.snapshot_files(snapshot.id)
        except NotFound as error:
            if snapshot.host != self._host:
                raise Unavailable(
                    f"{snapshot.id} is on host {snapshot.host}, this is {self._host}",
                    host=snapshot.host,
                    remedy="ask an api on that host, or fork it: one that is archived is fetched",
                    retry_after_s=5,
                ) from error
            raise Conflict(
                f"the files of {snapshot.id} are not there", state="gone", remedy="use the snapshot before it"
            ) from error

    def _check_host(self, execution: Execution) -> None:
        if execution.host is not None and execution.host != self._host:
            raise Unavailable(
                f"{execution.id} is on host {execution.host}, this is {self._host}",
                host=execution.host,
                remedy="ask an api on that host: an api reaches its own host's only",
                retry_after_s=5,
            )


def _remedy(state: ExecutionState) -> str:
    if state is ExecutionState.QUEUED:
        return "wait until it runs"
    if state is ExecutionState.HIBERNATED:
        return "send a message or resume it"
    return "it has ended: read its history, its files, or start another"
