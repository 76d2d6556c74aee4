"""Snapshots: a workspace and its harness's state at one point of the history, which one can resume, fork or look into.
The nouns, and the port of their records. Knows no filesystem and no Redis.

A snapshot is one consistent cut: files, the history's `seq`, the spool's `src`, the inbox and the journal of intents
agree. It exists whole or not at all: its files have their name before its record is written, and a record is removed
before its files are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class Why(StrEnum):
    """What it was taken for. Policies keep by it: those asked for stay until somebody removes them."""

    ASKED = "asked"
    PERIODIC = "periodic"
    HIBERNATE = "hibernate"
    END = "end"
    FORK = "fork"


@dataclass(frozen=True, slots=True)
class Cut:
    """Where everything stood. `seq`: the history's last event in it; `src`: the attempt's last frame; `inbox`: the last
    message the harness has read; `intents`: the journal's last `n`."""

    attempt: int
    seq: int
    src: int
    inbox: int
    intents: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One. `id`: `snp_…`. `sandbox_id`: whose files. `parent`: the one before it of the same execution, or the one it
    was forked from; "" = none. `digest`: "" until it was computed (see SnapshotStore.digest). `host`: where its files
    are; `archived`: they are in the archive, too. `store`: the kind that holds it."""

    id: str
    execution_id: str
    tenant: str
    why: Why
    cut: Cut
    sandbox_id: str
    host: str
    store: str
    created_at: datetime
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    parent: str = ""
    size_bytes: int = 0
    files: int = 0
    digest: str = ""
    archived: bool = False


@dataclass(frozen=True, slots=True)
class KeepPolicy:
    """Which periodic and hibernation snapshots stay: the newest `last`, and of each of the newest `days` days its last.
    Those asked for, or named, stay anyway, and so does the newest of a living execution."""

    last: int = 5
    days: int = 7


@dataclass(frozen=True, slots=True)
class Origin:
    """What an execution was forked from; `rewind`: and whose name it took over."""

    execution_id: str
    snapshot_id: str
    seq: int
    rewind: bool = False


class Snapshots(Protocol):
    """The records. A new one is written by `History.append` (Change.snapshot), in the step that says so in the history.
    All methods raise StoreUnavailable."""

    async def get(self, snapshot_id: str, *, tenant: str) -> Snapshot:
        """By its id, a unique prefix of it (>= 4 characters after `snp_`), or by its name where one snapshot of the
        tenant has it. Raises NotFound, BadInput(field="snapshot") where it is ambiguous."""

    async def list(self, *, tenant: str, execution_id: str = "", cursor: str = "", limit: int = 100) -> SnapshotPage:
        """Newest first: those of one execution by when they were taken, those of a tenant by their ids, which begin
        with their time. Raises BadInput for a cursor that is not ours."""

    async def tree(self, execution_id: str) -> Sequence[Snapshot]:
        """Every snapshot of this execution and of all it descends from or that descend from it, oldest first."""

    async def family(self, execution_id: str) -> Sequence[str]:
        """Ids of this execution, of all it descends from and of all that descend from it, oldest first; those without
        a snapshot of their own too. One that was removed is in it as long as a record or a snapshot names it."""

    async def label(self, snapshot_id: str, *, name: str | None, labels: Mapping[str, str] | None) -> Snapshot:
        """Other words for it; None = as they are. Raises NotFound, NameTaken."""

    async def measured(self, snapshot_id: str, *, digest: str, size_bytes: int, files: int) -> None:
        """What was computed afterwards. Raises NotFound."""

    async def archived(self, snapshot_id: str, archived: bool = True) -> None:
        """It is whole in the archive, or is not any more. What only waits for its host to begin from it may begin
        anywhere from here on. Raises NotFound."""

    async def some(self, ids: Sequence[str]) -> Sequence[Snapshot]:
        """Those of these that there are: for the sweeper."""

    async def remove(self, snapshot_id: str, *, why: str = "asked") -> None:
        """The record goes; descendants stay as they are. Idempotent. Where its execution goes on, the history says
        `snapshot.removed` in the same step. Raises Conflict (data: execution) while an
        execution that has not ended would begin its next attempt from it: as its newest, or as the one it was forked
        from until it has one of its own.

        With its execution (`Executions.remove`) go all of its snapshots, named ones, too, except those that others are
        still to begin from: those stay until `remove`."""

    async def on_host(self, host: str) -> Sequence[Snapshot]:
        """Those whose files are there: for the sweeper."""

    def everything(self) -> AsyncIterator[Snapshot]:
        """Every record once, in no order: for the sweeper and the backup."""


@dataclass(frozen=True, slots=True)
class SnapshotPage:
    """`next`: the opaque cursor of the next page, "" at the end."""

    snapshots: tuple[Snapshot, ...]
    next: str = ""
