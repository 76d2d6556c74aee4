"""Our side, speaking: typed events to stdout, one JSON object a line. Knows their shape, not when they are due.

Pieces of text that come in quick succession are put together for a tenth of a second: an event for each token would
cost a history more than it tells.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

TEXT_CHARS = 64_000  # of one field: a line must stay far below what init cuts (960 KiB)
PIECE_CHARS = 4_000
PIECE_S = 0.1


class Voice:
    """Speaks on a file descriptor."""

    def __init__(self, fd: int = 1) -> None:
        self._fd = fd
        self._kind = ""
        self._pieces: list[str] = []
        self._since = 0.0

    def chunk(self, kind: str, text: str) -> None:
        """A piece of what is being said or thought (agent_message_chunk, agent_thought_chunk)."""
        if not text:
            return
        if kind != self._kind:
            self.flush()
        if not self._pieces:
            self._kind, self._since = kind, time.monotonic()
        self._pieces.append(text)
        if sum(map(len, self._pieces)) >= PIECE_CHARS or self.due_s() == 0.0:
            self.flush()

    def due_s(self) -> float | None:
        """Seconds until what is held should be flushed; None = nothing is held."""
        return max(0.0, self._since + PIECE_S - time.monotonic()) if self._pieces else None

    def flush(self) -> None:
        """Say what is held."""
        pieces, self._pieces = self._pieces, []
        if pieces:
            self._say({"type": self._kind, "text": "".join(pieces)})

    def say(self, type: str, /, **fields: Any) -> None:
        """One event; what is held comes first. Raises OSError when nobody can hear any more."""
        self.flush()
        self._say({"type": type, **{name: value for name, value in fields.items() if value is not None}})

    def _say(self, said: dict[str, Any]) -> None:
        line = json.dumps(_sound(said)).encode() + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]


def bounded(text: str, limit: int = 16_000) -> str:
    """At most about so many characters, the middle left out."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def _sound(value: Any) -> Any:
    """Text that any reader of JSON takes: no half surrogate pairs, not endless."""
    if isinstance(value, str):
        return bounded(value.encode("utf-16", "surrogatepass").decode("utf-16", "replace"), TEXT_CHARS)
    if isinstance(value, dict):
        return {str(name): _sound(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_sound(inner) for inner in value]
    return value
