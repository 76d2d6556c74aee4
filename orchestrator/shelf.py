"""The port of the shelf: what executions left as artifacts, kept when their workspaces are gone. Knows no directory.

What is kept is whole, on disk and under its digest before anything names it. A workspace is hostile: whatever in it is
no artifact one can have (a link that leads out, a device, more than there is room for) is refused by its name.
"""

from __future__ import annotations

import posixpath
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from orchestrator.workspace import Files, OpenFile

ARTIFACTS: Final = "artifacts"  # the folder below /workspace in which they are left
MOST: Final = 1000  # of one execution
NAMED_BYTES: Final = 4096  # the longest path a harness may name


def places(said: str) -> tuple[str, str]:
    """A path a harness named: as that of an artifact, and where it lies in the workspace. `..` is resolved by its
    letters; what leads out still does."""
    path = posixpath.normpath(said.removeprefix("/workspace/") if said.startswith("/workspace/") else said)
    return path.removeprefix(f"{ARTIFACTS}/"), path


@dataclass(frozen=True, slots=True)
class Kept:
    """One artifact. `path` relative to /workspace/artifacts, or, of one elsewhere that the harness named, to
    /workspace; undecodable bytes as surrogateescape. `refused`: why it is not kept, "" = it is."""

    path: str
    size_bytes: int
    modified_at: datetime
    sha256: str = ""
    refused: str = ""


class Shelf(Protocol):
    """Of this host. All verbs idempotent; a crash between two leaves what `list` finds, or nothing."""

    async def name(self, execution_id: str, paths: Sequence[str]) -> None:
        """The harness says that these are artifacts, wherever they lie in the workspace: for `keep`, which looks at
        them then. Durable when this returns. Those beyond MOST, or longer than NAMED_BYTES, are dropped. Raises
        DiskFull."""

    async def named(self, execution_id: str) -> Sequence[str]:
        """What it said so far, each once."""

    async def keep(self, execution_id: str, files: Files) -> Sequence[Kept]:
        """Take a copy of what was named and of the regular files below `artifacts`, in this order, MOST at most, in
        place of what was kept of it before. A link is followed as far as it stays inside. Answers all it looked at,
        those refused too; none = nothing is held. Raises DiskFull where not even the list has room."""

    async def kept(self, execution_id: str) -> Sequence[Kept]:
        """The same answer, later. Raises NotFound, where nothing was ever kept of it; Conflict(state="corrupt")."""

    async def open(self, execution_id: str, one: Kept) -> OpenFile:
        """Its bytes; the etag is the digest. Raises NotFound; Conflict(state="corrupt") where they are not what was
        kept."""

    async def remove(self, execution_id: str) -> int:
        """Everything of this execution; what others keep too stays theirs. Answers the bytes that are free now."""

    def pack(self, execution_id: str) -> Generator[tuple[str, bytes]]:
        """All that is held of it, as it is at the first piece whatever becomes of it then: (a name of ours, a piece of
        at most 1 MiB), those of one name in a row. Blocking; to be closed. Raises NotFound, DiskFull, OSError."""

    async def load(self, execution_id: str, pieces: Iterator[tuple[str, bytes]]) -> None:
        """What `pack` gave, in place of what is here, beyond all limits but the disk's. What was damaged already is so
        here. Raises DiskFull; Conflict(state="corrupt") for what `pack` cannot have given, and keeps nothing then."""

    async def list(self) -> Sequence[tuple[str, datetime]]:
        """Ids of all executions of which something is here, with the time it came; what crashes left is removed."""
