"""What the shelf keeps of one execution, as a file: a JSON line for each artifact, then the digest of those lines.
Knows no folder."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator.shelf import Kept


def write_list(file: Path, kept: Sequence[Kept]) -> None:
    """One line a file, then the digest of those lines."""
    lines = b"".join(json.dumps(_shape(one)).encode() + b"\n" for one in kept)
    with file.open("wb") as out:
        out.write(lines + hashlib.sha256(lines).hexdigest().encode())
        out.flush()
        os.fsync(out.fileno())


def _shape(one: Kept) -> dict[str, Any]:
    return {
        "path": base64.b64encode(os.fsencode(one.path)).decode(),
        "size_bytes": one.size_bytes,
        "modified_s": one.modified_at.timestamp(),
        "sha256": one.sha256,
        "refused": one.refused.encode(errors="replace").decode(),
    }


def read_list(file: Path) -> Sequence[Kept]:
    """Raises FileNotFoundError, ValueError, KeyError, TypeError."""
    lines, _, digest = file.read_bytes().rpartition(b"\n")
    if hashlib.sha256(lines + b"\n").hexdigest().encode() != digest:
        raise ValueError("damaged")
    found = []
    for line in lines.split(b"\n"):
        one = json.loads(line)
        found.append(
            Kept(
                os.fsdecode(base64.b64decode(one["path"])),
                one["size_bytes"],
                datetime.fromtimestamp(one["modified_s"], tz=UTC),
                one["sha256"],
                one["refused"],
            )
        )
    return found
