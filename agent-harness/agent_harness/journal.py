"""The journal: one JSON object a line, appended and on disk before anything is done because of it. Knows no kind of
record and no meaning.

A crash can leave the last line without its end; it was never acted on, so it is cut. Two threads append: the loop, and
the ears, which write a message down before its receipt is given.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Journal:
    """`apply` is given every record, in order, those of earlier lives first; appending and applying are one step."""

    def __init__(self, path: Path, apply: Callable[[Record], None]) -> None:
        """Raises OSError; ValueError for a line in the middle that is no record: somebody else's file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._apply = apply
        self._lock = threading.RLock()
        for record in self._read(path):
            apply(record)

    def append(self, kind: str, **fields: Any) -> Record:
        """On disk when it returns. Raises OSError: then nothing has happened."""
        record = {"type": kind, **fields}
        line = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            end = os.fstat(self._fd).st_size
            try:
                if os.write(self._fd, line) != len(line):
                    raise OSError("the disk took part of a record")
                os.fsync(self._fd)
            except OSError:
                os.ftruncate(self._fd, end)  # half a record in the middle would make the rest unreadable
                raise
            self._apply(record)
        return record

    def _read(self, path: Path) -> list[Record]:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._fd, whole)
            os.fsync(self._fd)
        records = []
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                record["type"]
            except (ValueError, TypeError, KeyError) as problem:
                raise ValueError(f"{path}, line {number}: not a record of a journal ({problem})") from None
            records.append(record)
        return records
