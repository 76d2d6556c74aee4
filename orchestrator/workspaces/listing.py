"""A page of a directory tree in byte order of the paths, in bounded memory and descriptors, however hostile the tree.

Byte order of whole paths is not the order of a depth-first walk over sorted names: `a`, `a-b`, `a/c`, for `-` sorts
before `/`. So every folder stands twice in its parent's order: as itself at `name`, as its inside at `name/`.

No link is followed. What changes during the walk may be missed or seen; nothing is seen twice. Paths longer than
PATH_MAX are not listed: nobody could ask for them. Knows no policy about names.
"""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from orchestrator.workspaces.openat2 import open_inside

MAX_PATH_BYTES: Final = 4000  # PATH_MAX less room for the prefix below `vol`
_DEEP: Final = 16  # from here on folders are read in small batches, lest depth times page size be held
_DEEP_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """`name` is the path from the listed folder; `target` that of a link."""

    name: bytes
    stat: os.stat_result
    target: bytes = b""


def page(folder: int, *, after: bytes, limit: int, recursive: bool) -> list[Entry]:
    """At most `limit` entries whose path sorts after `after` (an entry's path, without "/" at its end)."""
    after = after.rstrip(b"/")
    found: list[Entry] = []
    for entry in walk(folder, after=after, limit=limit, recursive=recursive):
        found.append(entry)
        if len(found) >= limit:
            break
    return found


def walk(folder: int, *, after: bytes = b"", limit: int = 4096, recursive: bool = True) -> Iterator[Entry]:
    """All of them, one by one; `folder` must stay open. Of every folder at most `limit` names are held at once (it is
    read again for the next ones)."""
    # One generator of keys per level; a level's folder is open only while a batch of it is read.
    levels: list[tuple[bytes, Iterator[tuple[bytes, Entry | None]]]] = [
        (b"", _keys(folder, b"", after, limit, recursive))
    ]
    while levels:
        prefix, keys = levels[-1]
        step = next(keys, None)
        if step is None:
            levels.pop()
            continue
        key, entry = step
        if entry is not None:
            yield entry
            continue
        inner = prefix + key  # ends with "/"
        batch = limit if len(levels) < _DEEP else _DEEP_BATCH
        rest = after[len(inner) :] if after.startswith(inner) else b""
        levels.append((inner, _keys(folder, inner, rest, batch, True)))


def _keys(
    folder: int, prefix: bytes, after: bytes, batch: int, recursive: bool
) -> Iterator[tuple[bytes, Entry | None]]:
    """Of the folder `prefix` in order: (name, entry) for each entry, (name + "/", None) for the inside of a folder.
    Only what may sort after `after`."""
    while True:
        keys, steps = _batch(folder, prefix, after, batch, recursive)
        yield from steps
        if len(keys) < batch:
            return
        after = keys[-1]


def _batch(
    folder: int, prefix: bytes, after: bytes, size: int, recursive: bool
) -> tuple[list[bytes], list[tuple[bytes, Entry | None]]]:
    """The next keys, and what became of them (an entry may vanish in between)."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        here = open_inside(folder, prefix or b".", flags, links=False)
    except OSError:  # gone, or replaced by something else, since its parent was read
        return [], []
    try:
        with os.scandir(here) as entries:
            keys = heapq.nsmallest(size, _candidates(entries, len(prefix), after, recursive))
        steps: list[tuple[bytes, Entry | None]] = []
        for key in keys:
            if key.endswith(b"/"):
                steps.append((key, None))
            elif (entry := _entry(here, prefix, key)) is not None:
                steps.append((key, entry))
        return keys, steps
    finally:
        os.close(here)


def _candidates(
    entries: Iterable[os.DirEntry[str]], prefix_bytes: int, after: bytes, recursive: bool
) -> Iterator[bytes]:
    for entry in entries:
        name = os.fsencode(entry.name)
        if prefix_bytes + len(name) > MAX_PATH_BYTES:
            continue
        if name > after:
            yield name
        inside = name + b"/"
        # `after` may lie inside this folder; equal to it, the inside was done in the batch before.
        if recursive and (inside > after or (after.startswith(inside) and after != inside)) and _is_folder(entry):
            yield inside


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _entry(here: int, prefix: bytes, name: bytes) -> Entry | None:
    try:
        found = os.stat(name, dir_fd=here, follow_symlinks=False)
        target = os.readlink(name, dir_fd=here) if stat.S_ISLNK(found.st_mode) else b""
    except OSError:
        return None
    return Entry(prefix + name, found, target)
