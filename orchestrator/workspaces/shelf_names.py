"""What a harness named as its artifacts, as a file: each path in base64 on a line. Knows no folder."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from orchestrator.shelf import MOST


def append_names(file: Path, paths: Iterable[str]) -> None:
    """Durable, but for the file's own name, when this returns. Raises OSError."""
    with file.open("ab") as lines:
        # One write: another epoch's owner may append as well, and half a line of a crash is no line.
        lines.write(b"".join(b"\n" + base64.b64encode(os.fsencode(path)) + b"\n" for path in paths))
        lines.flush()
        os.fsync(lines.fileno())


def read_names(file: Path) -> Sequence[str]:
    """Each once, MOST at most; none where there is no file."""
    try:
        lines = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found: dict[str, None] = {}
    for line in lines:
        with contextlib.suppress(ValueError):
            found[os.fsdecode(base64.b64decode(line, validate=True))] = None
    found.pop("", None)
    return list(found)[:MOST]
