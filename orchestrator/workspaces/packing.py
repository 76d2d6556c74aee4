"""A tree as a layer: all of it, or what differs from an earlier tree beside it, piece by piece in bounded memory.

The tree does not change meanwhile (a snapshot), but somebody hostile made it: no link is followed, nothing is opened
that was not looked at, and FIFOs, sockets and devices are named instead. What is the same in both trees is told by
inode and change time where both are one filesystem's snapshots, and else by reading both: sizes and times can be set
by whoever wrote the file. Every folder is said again in a layer of differences, with its times. Knows no archive.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import zstandard

from orchestrator.workspaces.copying import reopen
from orchestrator.workspaces.descent import FOLDER, Descent, folders
from orchestrator.workspaces.layer_tar import END, Entry, Extent, header, padding

PIECE_BYTES: Final = 256 << 10
MOST_EXTENTS: Final = 65_536
_LEVEL: Final = 1  # twice as fast as 3, for a few per cent
_LEAST_HOLE_BYTES: Final = 4096
_NAMED: Final = 20  # of what is left out
_SETTLED_NS: Final = 10**9  # a change in the very tick of the snapshot has the same time


class Packed:
    """The layer of the folder `top`, as tar.zst. `below`: only what differs from that one; `below_ns`: when that was
    taken. May be closed from another thread than reads it. Raises OSError on the way, Conflict for another filesystem
    in it. `left_out`: so far."""

    def __init__(self, top: Path, below: Path | None = None, below_ns: int = 0) -> None:
        self._packing = _Packing()
        self._lock = threading.Lock()
        self._closed = False
        self._pieces = self._compressed(self._packing.tree(top, below, below_ns))

    @property
    def left_out(self) -> tuple[str, ...]:
        """FIFOs, sockets, devices and odd attributes: the first few by name, then how many more."""
        named, more = self._packing.left_out, self._packing.more
        return (*named, f"and {more} more") if more else tuple(named)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            if self._closed:
                raise StopIteration
            return next(self._pieces)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._pieces.close()

    @staticmethod
    def _compressed(pieces: Iterator[bytes]) -> Generator[bytes, None, None]:
        packing = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        waiting = bytearray()
        for piece in pieces:
            waiting += packing.compress(piece)
            if len(waiting) >= PIECE_BYTES:
                yield bytes(waiting)
                waiting.clear()
        yield bytes(waiting + packing.flush())


class _Packing:
    def __init__(self) -> None:
        self.left_out: list[str] = []
        self.more = 0

    def tree(self, top: Path, below: Path | None, below_ns: int) -> Generator[bytes, None, None]:
        path, begins, lacking = bytearray(), [0], 0
        with contextlib.ExitStack() as ending:
            tree = ending.enter_context(Descent(os.open(top, FOLDER)))
            old = ending.enter_context(Descent(os.open(below, FOLDER))) if below is not None else None
            names = ending.enter_context(_Names())
            for entered, text in folders(tree):
                name = os.fsencode(text)
                if not entered:
                    del path[begins.pop() :]
                    if not name:
                        continue
                    if lacking:
                        lacking -= 1
                    elif old is not None:
                        old.leave()
                    continue
                if name:
                    begins.append(len(path))
                    path += name
                    yield header(self._folder(bytes(path), tree))
                    path += b"/"
                    if lacking or (old is not None and not _is_folder(old.fd, name)):
                        lacking += 1
                    elif old is not None:
                        old.enter(text)
                beside = old.fd if old is not None and not lacking else -1
                yield from self._entries(bytes(path), tree.fd, beside, below_ns, names)
            yield END

    def _entries(self, path: bytes, folder: int, beside: int, below_ns: int, names: _Names) -> Iterator[bytes]:
        """What is no folder in this one, and what was in the one `beside` and is not here."""
        with os.scandir(folder) as found:
            for one in found:
                if not one.is_dir(follow_symlinks=False):
                    yield from self._entry(path, os.fsencode(one.name), folder, beside, below_ns, names)
        if beside < 0:
            return
        with os.scandir(beside) as found:
            for one in found:
                name = os.fsencode(one.name)
                if _stat(folder, name) is None:
                    yield header(Entry(path + name, "removed"))

    def _entry(
        self, path: bytes, name: bytes, folder: int, beside: int, below_ns: int, names: _Names
    ) -> Iterator[bytes]:
        # Looked at before it is opened, and opened by what was looked at.
        seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            found = os.fstat(seen)
            if stat.S_ISLNK(found.st_mode):
                entry = _symlink(path + name, name, folder, found)
                before = _stat(beside, name) if beside >= 0 else None
                was_link = before is not None and stat.S_ISLNK(before.st_mode)
                if before is None or not was_link or entry != _symlink(path + name, name, beside, before):
                    yield header(entry)
            elif not stat.S_ISREG(found.st_mode):
                self._name("device, socket or FIFO", path + name)
            else:
                yield from self._file(path + name, name, seen, found, beside, below_ns, names)
        finally:
            os.close(seen)

    def _file(
        self,
        path: bytes,
        name: bytes,
        seen: int,
        found: os.stat_result,
        beside: int,
        below_ns: int,
        names: _Names,
    ) -> Iterator[bytes]:
        if found.st_nlink > 1:
            first = names.first(found, path)
            if first != path:
                yield header(Entry(path, "link", target=first))
                return
        file, mode = reopen(seen)
        try:
            # A file of several names is always packed: whether all of them are as before is not seen at one.
            if beside >= 0 and found.st_nlink == 1 and _unchanged(file, found, beside, name, below_ns):
                return
            entry = Entry(
                path,
                "file",
                found.st_mode & 0o7777,
                found.st_mtime_ns,
                found.st_size,
                extents=_extents(file, found),
                attributes=self._attributes(file, path),
            )
            yield header(entry)
            for at, size_bytes in entry.extents if entry.extents is not None else [(0, found.st_size)]:
                yield from _content(file, at, size_bytes)
            yield padding(entry)
        finally:
            if mode is not None:
                os.fchmod(file, mode)
            os.close(file)

    def _folder(self, path: bytes, tree: Descent) -> Entry:
        attributes = self._attributes(tree.fd, path)
        return Entry(path, "directory", tree.mode, tree.found.st_mtime_ns, attributes=attributes)

    def _attributes(self, file: int, path: bytes) -> dict[bytes, bytes]:
        taken: dict[bytes, bytes] = {}
        with contextlib.suppress(OSError):  # a filesystem without attributes
            for text in sorted(os.listxattr(file)):
                name = os.fsencode(text)
                if not name.startswith(b"user."):
                    continue
                if b"=" in name:
                    self._name("an attribute with = in its name", path)
                    continue
                taken[name] = os.getxattr(file, text)
        return taken

    def _name(self, why: str, path: bytes) -> None:
        if len(self.left_out) < _NAMED:
            shown = path[:500].decode(errors="backslashreplace")
            self.left_out.append(f"{shown!r}: {why}")
        else:
            self.more += 1


class _Names:
    """By inode, the first name of each file that has several: on disk, however many there are."""

    def __init__(self) -> None:
        self._known: sqlite3.Connection | None = None

    def __enter__(self) -> _Names:
        return self

    def __exit__(self, *_: object) -> None:
        if self._known is not None:
            self._known.close()

    def first(self, found: os.stat_result, path: bytes) -> bytes:
        if self._known is None:
            # "" = a file of its own, removed when it is closed; pieces are asked for by one thread at a time.
            self._known = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._known.execute("PRAGMA cache_size=-4096")
            self._known.execute("CREATE TABLE first (inode INTEGER PRIMARY KEY, path BLOB)")
        self._known.execute("INSERT OR IGNORE INTO first VALUES (?, ?)", (found.st_ino, path))
        (first,) = self._known.execute("SELECT path FROM first WHERE inode = ?", (found.st_ino,)).fetchone()
        return bytes(first)


def _symlink(path: bytes, name: bytes, folder: int, found: os.stat_result) -> Entry:
    target = os.fsencode(os.readlink(name, dir_fd=folder))
    return Entry(path, "symlink", 0o777, found.st_mtime_ns, target=target)


def _unchanged(file: int, found: os.stat_result, beside: int, name: bytes, below_ns: int) -> bool:
    before = _stat(beside, name)
    if before is None or not stat.S_ISREG(before.st_mode) or before.st_nlink != 1:
        return False
    if any(getattr(found, what) != getattr(before, what) for what in ("st_mode", "st_size", "st_mtime_ns")):
        return False
    if (
        found.st_ino == before.st_ino
        and found.st_ctime_ns == before.st_ctime_ns
        and before.st_ctime_ns < below_ns - _SETTLED_NS
    ):
        return True  # one file of two snapshots: whatever changes it changes this time, which nobody can set
    there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=beside)
    try:
        other, mode = reopen(there)
    finally:
        os.close(there)
    try:
        return _attributes_of(file) == _attributes_of(other) and _same(file, other, found)
    finally:
        if mode is not None:
            os.fchmod(other, mode)
        os.close(other)


def _attributes_of(file: int) -> dict[str, bytes]:
    with contextlib.suppress(OSError):
        return {name: os.getxattr(file, name) for name in os.listxattr(file) if name.startswith("user.")}
    return {}


def _same(file: int, other: int, found: os.stat_result) -> bool:
    """Holes are not read: where both have one, they agree."""
    at = 0
    while at < found.st_size:
        begin = min(_data(file, at, found.st_size), _data(other, at, found.st_size))
        if os.pread(file, PIECE_BYTES, begin) != os.pread(other, PIECE_BYTES, begin):
            return False
        at = begin + PIECE_BYTES
    return True


def _data(file: int, at: int, size_bytes: int) -> int:
    try:
        return os.lseek(file, at, os.SEEK_DATA)
    except OSError:  # ENXIO: a hole to the end
        return size_bytes


def _extents(file: int, found: os.stat_result) -> list[Extent] | None:
    """None: it has no holes. As few as there is room for: small holes are then data."""
    if found.st_blocks * 512 >= found.st_size:
        return None
    least = _LEAST_HOLE_BYTES
    while True:
        extents: list[Extent] = []
        at = 0
        while at < found.st_size and len(extents) <= MOST_EXTENTS:
            begin = _data(file, at, found.st_size)
            if begin >= found.st_size:
                break
            at = min(os.lseek(file, begin, os.SEEK_HOLE), found.st_size)
            if extents and begin - sum(extents[-1]) < least:
                begin = extents.pop()[0]
            extents.append((begin, at - begin))
        if len(extents) <= MOST_EXTENTS:
            break
        least *= 16
    if extents == [(0, found.st_size)]:
        return None
    if not extents or sum(extents[-1]) < found.st_size:
        extents.append((found.st_size, 0))
    return extents


def _content(file: int, at: int, size_bytes: int) -> Iterator[bytes]:
    end = at + size_bytes
    while at < end:
        piece = os.pread(file, min(PIECE_BYTES, end - at), at)
        if not piece:  # damaged: the digest will say so
            piece = bytes(min(PIECE_BYTES, end - at))
        at += len(piece)
        yield piece


def _stat(folder: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_folder(folder: int, name: bytes) -> bool:
    found = _stat(folder, name)
    return found is not None and stat.S_ISDIR(found.st_mode)
