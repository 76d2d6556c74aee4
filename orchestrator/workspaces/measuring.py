"""What a tree holds: its digest, and the room it takes. Both read hostile trees in bounded memory (see `descent`).

The digest is the same for the same files on every store and after any archive: FIFOs, sockets and devices do not
count, nor do owners, times, hard links, and whether zeros are a hole. Knows nothing of workspaces.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from orchestrator.workspaces.copying import reopen
from orchestrator.workspaces.descent import BUDGET_NAMES, FOLDER, GONE, LEAST_NAMES, Descent, folders

BLOCK_BYTES: Final = 128 * 1024
_ZEROS: Final = bytes(BLOCK_BYTES)


def room(top: Path) -> tuple[int, int]:
    """(bytes on disk, entries) of all below the folder `top`. A file of several names counts with its share at each.
    Blocking. Raises OSError, Conflict for another filesystem in it."""
    used_bytes = entries_seen = 0
    with Descent(os.open(top, FOLDER)) as tree:
        for entered, _ in folders(tree):
            if not entered:
                continue
            used_bytes += tree.found.st_blocks * 512
            with os.scandir(tree.fd) as entries:
                for entry in entries:
                    entries_seen += 1
                    with contextlib.suppress(FileNotFoundError):
                        if not entry.is_dir(follow_symlinks=False):
                            found = entry.stat(follow_symlinks=False)
                            used_bytes += found.st_blocks * 512 // max(1, found.st_nlink)
    return used_bytes, entries_seen


def digest(top: Path) -> tuple[str, int, int]:
    """(sha256 hex, bytes of all files, entries) of all below the folder `top`; a file of several names counts at each.
    Blocking. Raises OSError, Conflict for another filesystem in it.

    In byte order of the paths below `top`, for each: `<kind> <mode> <bytes of path> <bytes of content>\\n`, the path,
    then a link's target or a file's content. kind: f, d, l; mode: octal, 0 for a link. Content is, for each block of
    131,072 bytes that is not all zeros, its number (8 bytes, big-endian) and the block.
    """
    whole = hashlib.sha256()
    size_bytes = entries = 0
    for path, tree, name in _ordered(top):
        found = os.stat(name, dir_fd=tree.fd, follow_symlinks=False)
        mode = stat.S_IMODE(found.st_mode)
        if stat.S_ISDIR(found.st_mode):
            whole.update(b"d %o %d 0\n" % (mode, len(path)) + path)
        elif stat.S_ISLNK(found.st_mode):
            target = os.fsencode(os.readlink(name, dir_fd=tree.fd))
            whole.update(b"l 0 %d %d\n" % (len(path), len(target)) + path + target)
        elif stat.S_ISREG(found.st_mode):
            whole.update(b"f %o %d %d\n" % (mode, len(path), found.st_size) + path)
            if found.st_size:
                _content(tree.fd, name, found.st_size, whole)
            size_bytes += found.st_size
        else:
            continue
        entries += 1
    return whole.hexdigest(), size_bytes, entries


def _content(folder: int, name: bytes, size_bytes: int, into: hashlib._Hash) -> None:
    seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        file, mode = reopen(seen)
    finally:
        os.close(seen)
    try:
        at = 0
        while at < size_bytes:
            try:
                at = os.lseek(file, at, os.SEEK_DATA) // BLOCK_BYTES * BLOCK_BYTES
            except OSError as error:
                if error.errno in GONE:  # ENXIO: a hole to the end
                    return
                raise
            block = os.pread(file, BLOCK_BYTES, at)
            if not block:
                return
            if block != _ZEROS[: len(block)]:
                into.update((at // BLOCK_BYTES).to_bytes(8, "big"))
                into.update(block)
            at += BLOCK_BYTES
    finally:
        if mode is not None:
            os.fchmod(file, mode)
        os.close(file)


@dataclass(slots=True)
class _Waiting:
    """Of one level: keys still to be looked at, last first; `after`: there may be more behind this key. `begins`: how
    much of the path is above it; the path itself is held once, or depth times depth of bytes would be."""

    begins: int
    keys: list[bytes] = field(default_factory=list)
    after: bytes | None = b""


def _ordered(top: Path) -> Iterator[tuple[bytes, Descent, bytes]]:
    """(path below `top`, the tree in the folder of the entry, the entry's name), in byte order of the paths: `a`,
    `a-b`, `a/c`. So every folder stands twice in its parent's order: as itself, and as its inside with "/" behind."""
    with Descent(os.open(top, FOLDER)) as tree:
        waiting = [_Waiting(0)]
        path = bytearray()
        held = 0
        while waiting:
            here = waiting[-1]
            if not here.keys and here.after is not None:
                most = max(LEAST_NAMES, (BUDGET_NAMES - held) // 2)
                batch = heapq.nsmallest(most, _keys(tree.fd, here.after))
                here.after = batch[-1] if len(batch) == most else None
                here.keys = batch[::-1]
                held += len(batch)
            if not here.keys:
                del path[waiting.pop().begins :]
                if waiting:
                    tree.leave()
                continue
            key = here.keys.pop()
            held -= 1
            if key.endswith(b"/"):
                tree.enter(os.fsdecode(key[:-1]))
                waiting.append(_Waiting(len(path)))
                path += key
            else:
                yield bytes(path) + key, tree, key


def _keys(folder: int, after: bytes) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if name > after:
                yield name
            if entry.is_dir(follow_symlinks=False) and name + b"/" > after:
                yield name + b"/"
