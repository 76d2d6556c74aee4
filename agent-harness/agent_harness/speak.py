"""Typed events to stdout, one JSON object a line, at once. Knows their shape, not when they are due.

The vocabulary is the contract's. Two threads speak: the loop, and the ears their receipts.
"""

from __future__ import annotations

import json
import os
import threading
from typing import Any

TEXT_CHARS = 64_000  # of one field: a line must stay far below what init cuts (960 KiB)


class Voice:
    """Speaks on a file descriptor."""

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def say(self, kind: str, **fields: Any) -> None:
        """One event. Raises OSError when nobody can hear any more."""
        line = json.dumps({"type": kind, **{name: sound(value) for name, value in fields.items()}}).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._fd, line) :]


def sound(value: Any) -> Any:
    """Text that any reader of JSON takes: no half surrogate pairs, not endless."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")[:TEXT_CHARS]
    if isinstance(value, dict):
        return {str(name): sound(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [sound(inner) for inner in value]
    return value
