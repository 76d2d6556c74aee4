"""What the actors are given: the ports, and a worker's few numbers. Knows no implementation and reads no setting."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.archive import Archive, HistoryArchive
from orchestrator.clock import Clock
from orchestrator.executions import Executions
from orchestrator.gateways import Gateways
from orchestrator.history import History
from orchestrator.intents import Intents
from orchestrator.removing import Removing
from orchestrator.room import Rooms
from orchestrator.sandbox import SandboxDriver
from orchestrator.shelf import Shelf
from orchestrator.snapshots import Snapshots
from orchestrator.workspace import Blobs, SnapshotStore


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """One worker's numbers. `worker` is unique among all that live; `host` names where its sandboxes are."""

    worker: str
    host: str
    image: str  # of sandboxes that name none
    runtime: str = ""
    concurrency: int = 64
    lease_s: float = 15.0
    claim_interval_s: float = 5.0
    sweep_interval_s: float = 15.0
    orphan_grace_s: float = 60.0
    host_lost_after_s: float = 60.0
    drain_grace_s: float = 10.0
    retention_s: float = 0.0  # 0: finished executions are kept
    workspace_retention_s: float = 0.0  # 0: and their workspaces as long
    init_lost_after_s: float = 60.0  # a sandbox that runs but whose init cannot be reached counts as lost after that
    cut_limit_s: float = 120.0  # so long the work stands still for a snapshot; then there is none, and it goes on
    look_s: float = 30.0  # how often a quiet execution is looked at, in case a bell or a hint was lost
    spool_limit_bytes: int = 64 << 20
    history_archive_after_s: float = 0.0  # 0: histories stay in the store
    archive_tidy_s: float = 300.0  # how often all that lies in the archive is listed
    fetched_keep_s: float = 3600.0  # so long a snapshot of another host stays here, to be forked or built on again
    task_file: Path = Path("/run/task")


@dataclass(frozen=True, slots=True)
class Parts:
    """The ports an actor acts on. `gateways` None: sandboxes have no way out. `rooms` None: disks are as large as one
    likes. `archive`, `histories` None: there is none. `hashing`: so many executions at once have their artifacts or
    snapshots read, so that a few with gigabytes do not take every thread."""

    executions: Executions
    history: History
    driver: SandboxDriver
    workspaces: SnapshotStore
    snapshots: Snapshots
    intents: Intents
    blobs: Blobs
    shelf: Shelf
    clock: Clock
    settings: WorkerSettings
    gateways: Gateways | None = None
    rooms: Rooms | None = None
    archive: Archive | None = None
    histories: HistoryArchive | None = None
    hashing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    @property
    def removing(self) -> Removing:
        """What takes things away on this host."""
        return Removing(self.executions, self.snapshots, self.workspaces, self.shelf, host=self.settings.host)
