"""The port of workspaces: the host directories a sandbox binds, and safe access to the files in them.

A *slot* is one directory per sandbox: `ctl/` (init's socket), `spool/` (init's frames), `vol/` (`workspace/` and
`state/`, owned by uid 1000). Knows nothing of containers. Whatever lies in `vol` is hostile: it is only ever touched
through resolution that cannot leave it (openat2 RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS, or as strict).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
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
    stored. `etag` of a regular file: another one whenever its content may be another; "" of all else."""

    path: str
    kind: FileKind
    size_bytes: int
    mode: int
    modified_at: datetime
    target: str = ""
    etag: str = ""


class OpenFile(Protocol):
    """A regular file opened for reading: its stat is of the opened file, so size and content belong together."""

    stat: FileStat
    etag: str

    def read(self, offset: int, size_bytes: int) -> bytes:
        """At most `size_bytes` from `offset`; b"" at the end. Blocking (call it in a thread)."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FilePage:
    """Entries in byte order of their path. `next`: up to where was looked, "" when everything was."""

    entries: Sequence[FileStat]
    next: str = ""


ArchiveFormat = Literal["tar", "tar.zst", "zip"]


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """How much may come out of an archive: bytes, entries, and bytes out per byte in (beyond the first 64 MiB)."""

    size_bytes: int
    entries: int = 200_000
    ratio: int = 250


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of one."""

    files: int = 0
    directories: int = 0
    links: int = 0
    size_bytes: int = 0


class Pieces(Iterator[bytes], Protocol):
    """Bytes on their way out. Close it when it is dropped, from any thread."""

    def close(self) -> None: ...


class Layer(Pieces, Protocol):
    """A snapshot's files as tar.zst, or what of them differs from another's, in pieces; asked for in a thread."""

    @property
    def left_out(self) -> Sequence[str]:
        """FIFOs, sockets, devices, which no archive holds: those met so far, the first few by name."""


ChangeKind = Literal["created", "modified", "removed", "overflow", "ended"]


@dataclass(frozen=True, slots=True)
class FileChange:
    """`overflow`: more happened than could be told (`path` ""): list again. `ended`: what was watched is gone, or
    folders came faster than they could be looked into; nothing follows."""

    change: ChangeKind
    path: str = ""


class Watch(Protocol):
    """Changes below a folder from the moment this was made on. A rename is `removed` and `created`."""

    def fileno(self) -> int:
        """Readable when `read` has something to say."""

    def read(self) -> Sequence[FileChange]:
        """What happened since, each (change, path) once; without waiting. Ask now and then also where nothing did: that
        the folder itself was removed may show only here. A folder that was made or moved in is told
        with all that is in it."""

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

    def find(self, path: str, pattern: str, *, after: str = "", limit: int = 1000) -> FilePage:
        """Entries anywhere below the folder `path` whose path from there fits the glob: `*` `?` `[…]` within a name,
        `**` over any number of folders. Looks at a bounded number of entries per call: a page may be short, or empty,
        and still have a `next`. Raises BadInput(field="glob")."""

    def open(self, path: str) -> OpenFile: ...

    def write(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        mode: int = 0o644,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> FileStat:
        """Write whole or not at all: to a temporary name beside it, then renamed. Makes missing folders.

        `if_match`: only over the regular file with this etag ("*" = over any); `if_absent`: only where nothing has this
        name. Else Changed, before a chunk is asked for and again before the rename: of two conditional writes one wins;
        a program inside is not held up by a condition. Raises DiskFull."""

    def mkdir(self, path: str) -> FileStat:
        """A folder, with those above it. One that is there is left as it is."""

    def move(self, path: str, to: str, *, overwrite: bool = False) -> FileStat:
        """Another name for a file, link or folder, in one step; missing folders above `to` are made. `overwrite`:
        replaces a file, or an empty folder by a folder; without it anything at `to` is a Conflict. Links are moved, not
        followed. Raises BadInput(field="to") too."""

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """A file, link, device, or empty folder; `recursive`: a folder and all in it, at once gone by its name. Links
        are removed, not followed. Raises Conflict for a folder that is not empty, BadInput for /workspace itself."""

    def archive(self, path: str, format: ArchiveFormat) -> Pieces:
        """A folder and all below it as one archive, in pieces, in bounded memory whatever its size; names relative to
        it. Links are kept as links. Devices, sockets and FIFOs, and what cannot be read, are left out, and files that
        shrank while they were read are padded: the last entry, `.carrel-left-out.txt`, then says which."""

    def unpack(self, path: str, chunks: Iterable[bytes], format: ArchiveFormat, limits: UnpackLimits) -> Unpacked:
        """An archive into the folder `path`, made where it is missing. Everything is received and checked beside it
        first; then a new folder takes its name in one rename, and into an existing one the entries are renamed one by
        one (a crash in between leaves some of them; a program inside may see that).

        Raises BadInput(field="archive") for what is no such archive, names that lead out, links that do, devices;
        TooLarge with the figures; Conflict where a folder would replace a file or the reverse; DiskFull."""

    def watch(self, path: str) -> Watch:
        """Changes below the folder `path`. Raises TooMany where this host can watch no more."""


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
    """Of one workspace or snapshot. `limit_bytes` 0 = none. `files` None = not counted. `alone_bytes`: of `used_bytes`
    what no other shares; None = nothing is shared, or it is not known."""

    used_bytes: int
    limit_bytes: int = 0
    files: int | None = None
    alone_bytes: int | None = None


class SnapshotStore(WorkspaceStore, Protocol):
    """A WorkspaceStore that can hold a workspace still: immutable copies of `vol` by a snapshot's id, on this host.
    All verbs idempotent; a crash between two leaves what `snapshots` lists."""

    async def facts(self) -> StoreFacts:
        """As it is now."""

    async def snapshot(self, sandbox_id: str, snapshot_id: str, *, still: Callable[[], bool] | None = None) -> None:
        """Keep `vol` as it is now under this id: whole on disk, with its name, when this returns. Nothing may write in
        it meanwhile (its processes are frozen, or gone). FIFOs, sockets and devices need not be in it. `still` is asked
        right before the files get their name, in a thread: False, or this call cancelled by then, and nothing is kept.

        Raises NotFound, DiskFull; Conflict for a volume that holds other subvolumes, which a snapshot would hold empty,
        and where `still` said no."""

    async def receive(self, snapshot_id: str, fill: Callable[[Path], None]) -> None:
        """Keep what `fill` (blocking, in a thread) puts into the empty folder it is given, as the `vol` of this
        snapshot: from an archive. Raises what `fill` raises, then nothing is kept; DiskFull."""

    async def load(
        self, snapshot_id: str, layers: Iterable[Iterable[bytes]], *, limits: UnpackLimits | None = None
    ) -> None:
        """Keep what these layers hold, the oldest first, as `pack` made them here or elsewhere: the same digest, on
        any kind of store. In a thread, each asked for when the one before is laid. `limits`: for what a stranger
        brings. Raises BadInput(field="archive") for what is none (workspace/ and state/ must be in it), TooLarge,
        DiskFull, Conflict, and what the layers raise: then nothing is kept."""

    def pack(self, snapshot_id: str, *, below: str = "") -> Layer:
        """All a snapshot holds as one archive that any tar reads, or only what differs from the snapshot `below`,
        which is here, too. Memory does not grow with it. Raises NotFound."""

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

    async def snapshot_disk(self, snapshot_id: str) -> DiskUse:
        """The same of a snapshot. Raises NotFound."""

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
