"""The port of workspaces: the host directories a sandbox binds, and safe access to the files in them.

A *slot* is one directory per sandbox: `ctl/` (init's socket), `spool/` (init's frames), `vol/` (`workspace/` and
`state/`, owned by uid 1000). Knows nothing of containers. Whatever lies in `vol` is hostile: it is only ever touched
through resolution that cannot leave it (openat2 RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, or as strict).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

HARNESS_UID = 1000


@dataclass(frozen=True, slots=True)
class Slot:
    """The host's side of one sandbox's files."""

    sandbox_id: str
    path: Path

    @property
    def socket(self) -> Path:
        return self.path / "ctl" / "init.sock"

    @property
    def gateway(self) -> Path:
        """Where the worker's gateway listens and init's outlet connects."""
        return self.path / "ctl" / "gateway.sock"

    @property
    def spool(self) -> Path:
        return self.path / "spool"


@dataclass(frozen=True, slots=True)
class Seed:
    """A file to lay into a new workspace: `path` relative to /workspace, content from a host file of ours."""

    path: str
    source: Path
    mode: int


FileKind = Literal["file", "directory", "symlink", "other"]


@dataclass(frozen=True, slots=True)
class FileStat:
    """`path` relative to /workspace, "/"-separated, undecodable bytes as surrogateescape. `target` of a symlink as
    stored."""

    path: str
    kind: FileKind
    size_bytes: int
    mode: int
    modified_at: datetime
    target: str = ""


class OpenFile(Protocol):
    """A regular file opened for reading: its stat is of the opened file, so size and content belong together."""

    stat: FileStat
    etag: str

    def read(self, offset: int, size_bytes: int) -> bytes:
        """At most `size_bytes` from `offset`; b"" at the end. Blocking (call it in a thread)."""

    def close(self) -> None: ...


class Files(Protocol):
    """The workspace of one execution, in any of its states. Paths are relative to /workspace; absolute ones under
    /workspace/ and /state/ are taken too. Blocking methods: call them in a thread.

    Raises NotFound, BadInput(field="path") for a path that leaves the workspace, holds NUL or is too long, Conflict
    for a directory where a file is needed (and the reverse), and for devices, sockets and FIFOs, which are never
    opened.
    """

    def stat(self, path: str) -> FileStat: ...

    def list(self, path: str, *, recursive: bool = False, after: str = "", limit: int = 1000) -> Sequence[FileStat]:
        """Entries in byte order of their path, after `after`. Links are listed, never followed."""

    def open(self, path: str) -> OpenFile: ...

    def write(self, path: str, chunks: Iterable[bytes], *, mode: int = 0o644) -> FileStat:
        """Write whole or not at all: to a temporary name beside it, then renamed. Makes missing folders. Raises
        DiskFull."""


class WorkspaceStore(Protocol):
    """Makes, hands over and removes slots on this host. All verbs idempotent; a crash between two leaves what the
    sweeper finds."""

    async def prepare(self, sandbox_id: str, *, inherit: str | None, seeds: Sequence[Seed], disk_bytes: int) -> Slot:
        """A slot ready for a sandbox. `inherit` names an earlier sandbox of this execution whose `vol` is taken over
        (moved); where that is gone, or None, `vol` is new and `seeds` are laid into it. Raises DiskFull,
        BadInput(field="files")."""

    def slot(self, sandbox_id: str) -> Slot:
        """Where it is (or would be)."""

    async def holds(self, sandbox_id: str) -> bool:
        """True when this sandbox's `vol` is here and whole, in its own slot or in that of a later sandbox that
        inherited it."""

    async def strip(self, sandbox_id: str) -> None:
        """Remove `ctl` and `spool`, keep `vol`: the execution has ended."""

    async def remove(self, sandbox_id: str) -> None:
        """Remove the whole slot."""

    async def list(self) -> Sequence[tuple[str, datetime]]:
        """Ids (`sbx_…`) of all slots here, with the time they were made; of nothing else that lies there."""

    def files(self, sandbox_id: str) -> Files:
        """Access to its `vol`. Raises NotFound when the slot is not here."""


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What a store is: its `kind` (btrfs, directory), whether it bounds a workspace's size, whether a snapshot takes
    the same time whatever its size, and the room it has. 0 = not known."""

    kind: str
    limits_disk: bool
    instant: bool
    free_bytes: int = 0
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Of one workspace. `limit_bytes` 0 = none. `files` None = not counted."""

    used_bytes: int
    limit_bytes: int = 0
    files: int | None = None


class SnapshotStore(WorkspaceStore, Protocol):
    """A WorkspaceStore that can hold a workspace still: immutable copies of `vol` by a snapshot's id, on this host.
    All verbs idempotent; a crash between two leaves what `snapshots` lists."""

    async def facts(self) -> StoreFacts:
        """As it is now."""

    async def snapshot(self, sandbox_id: str, snapshot_id: str) -> None:
        """Keep `vol` as it is now under this id: whole on disk, with its name, when this returns. Nothing may write in
        it meanwhile (its processes are frozen, or gone). FIFOs, sockets and devices need not be in it. Raises NotFound,
        DiskFull; Conflict for a volume that holds other subvolumes, which a snapshot would hold empty."""

    async def receive(self, snapshot_id: str, fill: Callable[[Path], None]) -> None:
        """Keep what `fill` (blocking, in a thread) puts into the empty folder it is given, as the `vol` of this
        snapshot: from an archive. Raises what `fill` raises, then nothing is kept; DiskFull."""

    async def begin(self, sandbox_id: str, snapshot_id: str, *, disk_bytes: int) -> Slot:
        """As `prepare`, with `vol` as this snapshot has it. Raises NotFound, DiskFull; Infeasible where the store
        cannot keep the limit, or the snapshot holds more already."""

    async def snapshots(self) -> Sequence[tuple[str, datetime]]:
        """Ids (`snp_…`) of all here, with the time they were made."""

    def snapshot_files(self, snapshot_id: str) -> Files:
        """To look into it. Raises NotFound."""

    async def digest(self, snapshot_id: str) -> tuple[str, int, int]:
        """(sha256 hex over every path, kind, mode, link target and content in byte order of paths; bytes of all files;
        how many entries). FIFOs, sockets and devices do not count; holes are zeros. Reads all. Raises NotFound."""

    async def drop(self, snapshot_id: str) -> None:
        """Remove it. What was begun from it stays as it is."""

    async def disk(self, sandbox_id: str) -> DiskUse:
        """What its `vol` takes, not older than a few seconds, or ten times what measuring took. Raises NotFound."""

    async def limit(self, sandbox_id: str, disk_bytes: int) -> None:
        """Another limit for its `vol`; 0 = none. Raises NotFound; Infeasible where the store cannot (`facts` says so:
        then whoever owns the execution compares `disk` with the limit, and stops it), or it holds more already."""


class Blobs(Protocol):
    """Content by digest, written before the submit that names it. Unreferenced ones expire."""

    async def put(self, chunks: AsyncIterator[bytes], *, limit_bytes: int) -> tuple[str, int]:
        """Store a stream; (sha256 hex, size). Durable when this returns. Raises BadInput(field="content"), DiskFull."""

    async def has(self, sha256: str) -> int | None:
        """Its size, or None."""

    def path(self, sha256: str) -> Path:
        """The host file of a blob that is here."""

    async def expire(self, keep: frozenset[str], older_than_s: float) -> int:
        """Remove those neither in `keep` nor young; how many."""
