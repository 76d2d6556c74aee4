"""An archive on its way in: its bytes read on demand, what comes out of it counted against the limits, and what one
entry of any format is. Knows no format and no folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from orchestrator.errors import BadInput, TooLarge
from orchestrator.workspace import UnpackLimits

PIECE_BYTES: Final = 256 << 10
_FREE_BYTES: Final = 64 << 20  # so much may come out of however little


@dataclass(frozen=True)
class Member:
    """One entry as its archive says it. `target` of links. `content` must be used up before the next one is taken."""

    name: bytes
    kind: Literal["file", "directory", "symlink", "hardlink"]
    mode: int = 0o644
    mtime_s: float = -1.0
    target: bytes = b""
    content: Iterator[bytes] = field(default_factory=lambda: iter(()))


class Reading(Protocol):
    """What readers of formats read from."""

    def read(self, size_bytes: int = -1, /) -> bytes: ...


class Incoming:
    """The chunks of an upload as something to read from; and the counts."""

    def __init__(self, chunks: Iterable[bytes], limits: UnpackLimits) -> None:
        self._chunks = iter(chunks)
        self._rest = memoryview(b"")
        self._limits = limits
        self.received_bytes = 0
        self.unpacked_bytes = 0
        self.entries = 0

    def read(self, size_bytes: int = -1, /) -> bytes:
        """Some bytes, at most so many; b"" at the end."""
        while not self._rest:
            piece = next(self._chunks, b"")
            if not piece:
                return b""
            self.received_bytes += len(piece)
            self._rest = memoryview(piece)
        if size_bytes < 0:
            size_bytes = len(self._rest)
        data = bytes(self._rest[:size_bytes])
        self._rest = self._rest[size_bytes:]
        return data

    def drain(self) -> None:
        """What follows the archive's end (padding) is received, too: else its sender hears of a broken line."""
        while self.read():
            pass

    def count_entry(self) -> None:
        """Raises TooLarge."""
        self.entries += 1
        if self.entries > self._limits.entries:
            raise self._too_large(f"more than {self._limits.entries} entries", f"{self._limits.entries} entries")

    def count_bytes(self, size_bytes: int) -> None:
        """Raises TooLarge, before they are written."""
        self.unpacked_bytes += size_bytes
        limits = self._limits
        if self.unpacked_bytes > limits.size_bytes:
            raise self._too_large(f"more than {limits.size_bytes} bytes", f"{limits.size_bytes} bytes unpacked")
        if self.unpacked_bytes > _FREE_BYTES and self.unpacked_bytes > limits.ratio * self.received_bytes:
            raise self._too_large(
                f"more than {limits.ratio} bytes for each byte of it", f"{limits.ratio} bytes unpacked per byte sent"
            )

    def _too_large(self, what: str, limit: str) -> TooLarge:
        return TooLarge(
            f"the archive unpacks to {what}",
            field="archive",
            limit=limit,
            remedy="send it in parts, or less packed",
            received_bytes=self.received_bytes,
            unpacked_bytes=self.unpacked_bytes,
            entries=self.entries,
        )


def bad_archive(name: bytes, what: str) -> BadInput:
    """What is wrong with an entry."""
    shown = name.decode(errors="backslashreplace")[:200]
    return BadInput(
        f"the archive's entry {shown!r} {what}",
        field="archive",
        limit="files, folders and links that stay inside",
        remedy="pack it without that entry",
    )


def no_archive(format: str, why: str) -> BadInput:
    """What is no such archive, or half of one."""
    return BadInput(
        f"this is no whole {format}: {why}",
        field="archive",
        limit=f"a {format} archive",
        remedy="send it again, or name its format",
    )


def exactly(source: Reading, size_bytes: int, format: str) -> bytes:
    """So many bytes, which must be few. Raises BadInput when it ends before."""
    data = bytearray()
    while len(data) < size_bytes:
        piece = source.read(size_bytes - len(data))
        if not piece:
            raise no_archive(format, "it ends early")
        data += piece
    return bytes(data)
