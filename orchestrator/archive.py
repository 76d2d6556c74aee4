"""The port of the archive: snapshots and histories where every host of an installation finds them.

A plain shelf of named objects, each of which exists whole or not at all; and what is kept there: of a snapshot one
layer and a manifest, of a history segments and a manifest. A manifest is written last: what it names is there. Knows
no bucket and no folder.

  snapshots/<snapshot>/<chance>.tar.zst      a layer (`SnapshotStore.pack`)
  snapshots/<snapshot>/on-<base>.json        its manifest; `base`: the snapshot it builds on, `nothing` = it is whole
  histories/<execution>/<generation>-<seq>   events from that seq on
  histories/<execution>/<generation>.json    which segments there are
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final, Protocol

from orchestrator.errors import Damaged
from orchestrator.events import Cursor
from orchestrator.history import Page
from orchestrator.workspace import Pieces

SNAPSHOTS: Final = "snapshots/"
HISTORIES: Final = "histories/"
MANIFEST: Final = ".json"
NOTHING: Final = "nothing"
MOST_LAYERS: Final = 8  # one more is packed whole: to fetch it takes that many, and one damaged spoils all above
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Stored:
    """One object, as the archive lists it."""

    name: str
    size_bytes: int
    changed_at: datetime


class Archive(Protocol):
    """Objects by name: `/`-separated, of a-z A-Z 0-9 . _ -. All methods block: call them in a thread. All raise
    ArchiveUnavailable."""

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Whole and durable when this returns, over whatever had the name; else nothing is to be seen of it. In
        bounded memory. Raises DiskFull(where="archive"), and what `chunks` raises."""

    def get(self, name: str) -> Pieces:
        """Its bytes, in bounded memory. Raises NotFound, while it is read too."""

    def list(self, prefix: str) -> Iterator[Stored]:
        """All whose names begin so, in no order."""

    def remove(self, name: str) -> None:
        """Idempotent."""

    def tidy(self, now: datetime) -> None:
        """Remove what crashes left half done here, where that is to be seen."""

    def where(self) -> str:
        """For people; no secret is in it."""


class HistoryArchive(Protocol):
    """Histories that have ended, read by the same cursors. Raises ArchiveUnavailable, DiskFull."""

    async def keep(self, execution_id: str, pages: AsyncIterator[Page]) -> None:
        """All of it: `pages` from its first event to the closing one. Again is the same again."""

    async def read(self, execution_id: str, after: Cursor, *, limit: int, max_bytes: int) -> Page:
        """As `History.read`. Raises NotFound, Damaged."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Of one snapshot. `layer`: its object; `base`: the snapshot whose files that changes, "" = none; `layers`: how
    many a fetch needs; `digest`, `size_bytes`, `files`: of all the files, as its record has them; `left_out`: what no
    archive holds."""

    snapshot_id: str
    execution_id: str
    tenant: str
    seq: int
    layer: str
    stored_bytes: int
    sha256: str
    base: str
    layers: int
    digest: str
    size_bytes: int
    files: int
    store: str
    created_at: str
    left_out: Sequence[str] = ()
    format: int = FORMAT

    @property
    def name(self) -> str:
        return f"{SNAPSHOTS}{self.snapshot_id}/on-{self.base or NOTHING}{MANIFEST}"

    def encode(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def manifest_of(name: str, data: bytes) -> Manifest:
    """Raises Damaged."""
    try:
        said = json.loads(data)
        if said["format"] != FORMAT:
            raise Damaged(f"{name} is of format {said['format']}: a newer release wrote it", what=name)
        found = Manifest(**said)
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{name} is no manifest: {error}", what=name) from error
    if found.name != name or not found.layer.startswith(f"{SNAPSHOTS}{found.snapshot_id}/"):
        raise Damaged(f"{name} is the manifest of something else", what=name)
    return found


def owner_of(name: str) -> str:
    """The snapshot or execution an object belongs to; "" = none of ours."""
    parts = name.split("/")
    return parts[1] if len(parts) == 3 and f"{parts[0]}/" in (SNAPSHOTS, HISTORIES) else ""


def base_of(name: str) -> str | None:
    """What the snapshot of this manifest builds on, "" = nothing; None: it is no snapshot's manifest."""
    last = name.rpartition("/")[2]
    if not (name.startswith(SNAPSHOTS) and last.startswith("on-") and last.endswith(MANIFEST)):
        return None
    base = last[len("on-") : -len(MANIFEST)]
    return "" if base == NOTHING else base
