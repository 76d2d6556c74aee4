"""A folder as one archive, piece by piece: tar (pax), tar under zstd, or zip. Memory does not grow with the folder.

Names and metadata are the workspace's own and hostile: each file is opened below the folder without following a link,
looked at before it is opened, and its size is that of the opened file. Links stay links. What is left out, or did not
stay as it was while it was read, is said in a last entry: an archive that had to be broken off after 5 GB helps nobody,
and one that is silently incomplete is worse.
"""

from __future__ import annotations

import os
import stat
import tarfile
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Final

import zstandard

from orchestrator.errors import CarrelError
from orchestrator.workspace import HARNESS_UID, ArchiveFormat
from orchestrator.workspaces import listing, zipping
from orchestrator.workspaces.lookup import open_regular

LEFT_OUT: Final = ".carrel-left-out.txt"
PIECE_BYTES: Final = 256 << 10
_LEVEL: Final = 1  # a workspace goes over a network once; 3 takes twice the CPU for a few per cent
_HOLES_BYTES: Final = 1 << 30  # a file with more than this of nothing in it is not written out
_NAMED: Final = 1000  # so many are named in the note
_PERMISSIONS: Final = 0o777
_MTIME_MAX: Final = 253_402_300_799  # year 9999: later ones are refused by others' readers
_BLOCK: Final = 512


@dataclass
class Note:
    """What is not in the archive as it was in the folder."""

    lines: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, why: str, name: bytes) -> None:
        if len(self.lines) < _NAMED:
            self.lines.append(f"{why}\t{name.decode(errors='backslashreplace')!r}\n")
        else:
            self.more += 1

    def text(self) -> bytes:
        more = f"and {self.more} more\n" if self.more else ""
        return ("".join(self.lines) + more).encode()


@dataclass(frozen=True)
class Item:
    """One entry on its way out. `descriptor`: of a regular file, open; -1 = none. `text`: its content otherwise."""

    name: bytes
    mode: int
    mtime_s: float
    size_bytes: int = 0
    descriptor: int = -1
    target: bytes = b""
    text: bytes = b""


class Pieces:
    """The archive of the open folder, which it closes. May be closed from another thread than reads it."""

    def __init__(self, folder: int, format: ArchiveFormat) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        items = _items(folder, note := Note())
        made = zipping.pieces(items, note, read) if format == "zip" else _tar(items, note)
        if format == "tar.zst":
            made = _compressed(made)
        self._pieces = _gathered(made)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            if self._folder < 0:
                raise StopIteration
            return next(self._pieces)

    def close(self) -> None:
        with self._lock:
            if self._folder >= 0:
                self._pieces.close()
                os.close(self._folder)
                self._folder = -1


def _items(folder: int, note: Note) -> Iterator[Item]:
    for entry in listing.walk(folder):
        mode, mtime_s = entry.stat.st_mode, min(max(entry.stat.st_mtime, 0.0), _MTIME_MAX)
        if entry.name == os.fsencode(LEFT_OUT):
            continue  # of an archive that was unpacked here; ours would follow it
        if stat.S_ISDIR(mode):
            yield Item(entry.name, mode, mtime_s)
        elif stat.S_ISLNK(mode):
            yield Item(entry.name, mode, mtime_s, target=entry.target)
        elif not stat.S_ISREG(mode):
            note.add("device, socket or FIFO", entry.name)
        else:
            try:
                descriptor = open_regular(folder, entry.name)
            except (OSError, CarrelError):
                note.add("removed, exchanged or not readable", entry.name)
                continue
            try:
                found = os.fstat(descriptor)
                if found.st_size - found.st_blocks * _BLOCK > _HOLES_BYTES:
                    note.add(f"sparse: {found.st_size} bytes, mostly of nothing; read it by its path", entry.name)
                    continue
                yield Item(entry.name, found.st_mode, mtime_s, found.st_size, descriptor)
            finally:
                os.close(descriptor)


def read(item: Item, note: Note) -> Iterator[bytes]:
    """Exactly `size_bytes` of it: the size was written down already."""
    left = item.size_bytes
    while left and (piece := os.read(item.descriptor, min(PIECE_BYTES, left))):
        left -= len(piece)
        yield piece
    if left:
        note.add(f"shrank while it was read: the last {left} bytes are zeros", item.name)
    while left:
        piece = bytes(min(PIECE_BYTES, left))
        left -= len(piece)
        yield piece


def _tar(items: Iterator[Item], note: Note) -> Iterator[bytes]:
    for item in items:
        yield _header(item)
        if item.size_bytes:
            yield from read(item, note)
            yield bytes(-item.size_bytes % _BLOCK)
    if text := note.text():
        yield _header(Item(os.fsencode(LEFT_OUT), stat.S_IFREG | 0o644, 0.0, len(text)))
        yield text + bytes(-len(text) % _BLOCK)
    yield bytes(2 * _BLOCK)


def _header(item: Item) -> bytes:
    info = tarfile.TarInfo(os.fsdecode(item.name))
    info.mode = item.mode & _PERMISSIONS
    info.mtime = int(item.mtime_s)
    info.uid = info.gid = HARNESS_UID
    info.size = item.size_bytes
    if stat.S_ISDIR(item.mode):
        info.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(item.mode):
        info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(item.target)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packing = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
    for piece in pieces:
        yield packing.compress(piece)
    yield packing.flush()


def _gathered(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
    """In larger ones: each costs a change of threads."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        if len(waiting) >= PIECE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)
