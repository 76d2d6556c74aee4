"""What a backup is made of. Knows no store and opens no file.

One tar under zstd, that any tar reads (`tar --zstd -tf`), of *pieces* of at most PIECE_BYTES, in this order:
    backup.json                  format, release, installation, host, when
    records/<n>.jsonl            the store's lines
    blobs/<sha256>/<n>           what executions that have not ended are to begin with, uploaded files
    snapshots/<id>/<n>           a snapshot's files on this host: put together, a tar.zst
    artifacts/<id>/<file>/<n>    what is on this host's shelf of an execution: the list, and each content by its sha256
    manifest.json                last: what there is of each, what is missing, and the chain
Each piece says its own sha256 (a pax header); the *chain* is the sha256 over the names and digests of all pieces before
the manifest, in their order. So what is cut off, changed, left out, doubled or put elsewhere shows, and where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Final

from orchestrator.errors import BadInput

FORMAT: Final = 1
PIECE_BYTES: Final = 1 << 20
#: Of a piece of lines: the last line of it may be long (an event has at most 4 MiB, and JSON escapes).
MOST_BYTES: Final = 64 << 20
HEAD, MANIFEST = "backup.json", "manifest.json"
RECORDS, BLOBS, SNAPSHOTS, ARTIFACTS = "records", "blobs", "snapshots", "artifacts"
SHA256: Final = "CARREL.sha256"
MOST_NAMED: Final = 1000  # of what is missing; the others are counted


@dataclass(frozen=True, slots=True)
class Head:
    """How a backup begins."""

    release: str
    installation: str
    host: str
    taken_at: str  # RFC 3339, when it began
    format: int = FORMAT

    @property
    def moment(self) -> datetime:
        return datetime.fromisoformat(self.taken_at)


@dataclass(frozen=True, slots=True)
class Contents:
    """How a backup ends: how much is in it. `elsewhere`: snapshots whose files are on other hosts and in no archive;
    `gone`: those whose files went while it was taken. `chain`: also its name."""

    executions: int = 0
    snapshots: int = 0  # records
    snapshot_files: int = 0  # of how many the files are in it
    blobs: int = 0
    artifacts: int = 0  # executions of which something is on the shelf
    bytes: int = 0  # of all pieces
    elsewhere: tuple[str, ...] = ()
    elsewhere_count: int = 0
    gone: tuple[str, ...] = ()
    chain: str = ""


class Chain:
    """The digest of what came so far."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()

    def add(self, name: str, digest: str) -> None:
        self._sum.update(f"{name} {digest}\n".encode())

    def hexdigest(self) -> str:
        return self._sum.hexdigest()


def dumps(noun: Head | Contents) -> bytes:
    return json.dumps(asdict(noun), indent=1).encode() + b"\n"


def to_head(data: bytes) -> Head:
    """Raises BadInput where this release cannot read what follows."""
    got = _object(data, HEAD)
    if got.get("format") != FORMAT:
        raise BadInput(
            f"the backup has the format {got.get('format')!r}",
            field="file",
            limit=f"format {FORMAT}",
            remedy="use the release that took it, or a newer one",
        )
    return Head(**{field.name: got[field.name] for field in fields(Head) if field.name in got})


def to_contents(data: bytes) -> Contents:
    got = _object(data, MANIFEST)
    known = {field.name: got[field.name] for field in fields(Contents) if field.name in got}
    return Contents(**known | {name: tuple(known.get(name, ())) for name in ("elsewhere", "gone")})


def damaged(why: str, *, piece: str = "") -> BadInput:
    """The error of a backup that is not what was written."""
    where = f"the backup is damaged at {piece}" if piece else "the backup is damaged"
    return BadInput(f"{where}: {why}", field="file", remedy="use another backup", piece=piece)


def _object(data: bytes, piece: str) -> Mapping[str, Any]:
    try:
        got = json.loads(data)
    except ValueError as wrong:
        raise damaged(str(wrong), piece=piece) from None
    if not isinstance(got, dict):
        raise damaged("it is no JSON object", piece=piece)
    return got
