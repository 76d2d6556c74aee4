"""Going down a tree that somebody hostile made, folder by folder, by descriptors: 10,000 levels deep, 100,000 wide.

No link is followed and no path is put together. However deep, few descriptors are open: what is far above is closed
and found again as `..`, which must then be the very folder that it was. However wide, few names are held: a folder's
subfolders are read in batches, in byte order. Knows not what is done with what is there.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from orchestrator.errors import Conflict

KEEP_OPEN: Final = 48  # levels: two trees at once stay far below the usual 1,024 descriptors
BUDGET_NAMES: Final = 100_000  # of folders that wait, in all levels together: ~10 MB
LEAST_NAMES: Final = 64  # of one level, whatever the others hold
FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

#: What an entry that was there a moment ago answers when somebody replaced it.
GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO})


@dataclass(slots=True)
class Level:
    """A folder on the way down; `fd` -1 = closed for now. `mode`: to be given back, its owner had no right to it."""

    fd: int
    found: os.stat_result
    mode: int | None = None


class Descent:
    """Where we are in the tree whose top is the open directory `top`, which is taken over. Close it."""

    def __init__(self, top: int) -> None:
        self._levels = [Level(top, os.fstat(top))]

    @property
    def fd(self) -> int:
        return self._levels[-1].fd

    @property
    def found(self) -> os.stat_result:
        """The folder we are in, as it was when we came."""
        return self._levels[-1].found

    @property
    def mode(self) -> int:
        """Its permissions, as its owner set them."""
        level = self._levels[-1]
        return level.found.st_mode & 0o7777 if level.mode is None else level.mode

    @property
    def depth(self) -> int:
        return len(self._levels) - 1

    def enter(self, name: str) -> None:
        """Down into a folder of this one. Raises OSError; Conflict for one that is another filesystem."""
        fd, mode = open_anyway(name, self.fd, FOLDER)
        found = os.fstat(fd)
        if found.st_dev != self._levels[0].found.st_dev:
            os.close(fd)
            raise Conflict(
                f"the folder {name!r} is a subvolume, or another filesystem: a copy would lack what is in it",
                state="nested",
                remedy="remove it, or put a plain folder in its place",
            )
        self._levels.append(Level(fd, found, mode))
        far = len(self._levels) - 1 - KEEP_OPEN
        if far > 0 and self._levels[far].fd >= 0:
            os.close(self._levels[far].fd)
            self._levels[far].fd = -1

    def leave(self) -> None:
        """Up again. Raises Conflict where the tree was changed below our feet."""
        below, above = self._levels[-1], self._levels[-2]
        if above.fd < 0:
            fd = os.open("..", FOLDER, dir_fd=below.fd)
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != (above.found.st_dev, above.found.st_ino):
                os.close(fd)
                raise Conflict("the workspace was changed while it was read", state="busy", remedy="ask again")
            above.fd = fd
        self._levels.pop()
        _close(below)

    def close(self) -> None:
        while self._levels:
            _close(self._levels.pop())

    def __enter__(self) -> Descent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(level: Level) -> None:
    if level.fd >= 0:
        if level.mode is not None:
            with contextlib.suppress(OSError):
                os.fchmod(level.fd, level.mode)
        os.close(level.fd)


def open_anyway(name: str, folder: int, flags: int) -> tuple[int, int | None]:
    """Open what its owner took his own rights away from, too: (descriptor, mode to give back or None). Matters to a
    worker that is not root. No link is followed."""
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), None
    except PermissionError:
        there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            mode = os.fstat(there).st_mode & 0o7777
            os.chmod(f"/proc/self/fd/{there}", mode | 0o700)  # noqa: PTH101 (no Path has a descriptor)
            return os.open(f"/proc/self/fd/{there}", (flags & ~os.O_NOFOLLOW) | os.O_CLOEXEC), mode
        finally:
            os.close(there)


@dataclass(slots=True)
class _Waiting:
    """Of one level: subfolders still to be entered, last first; `after`: there may be more behind this name."""

    names: list[str] = field(default_factory=list)
    after: bytes | None = None


def folders(tree: Descent) -> Iterator[tuple[bool, str]]:
    """Every folder of the tree twice: (True, its name) when `tree` is in it, its inside not yet entered; (False, name)
    when all of its inside was. The top's name is ""."""
    names = [""]
    waiting = [_Waiting(after=b"")]
    held = 0
    yield True, ""
    while waiting:
        here = waiting[-1]
        if not here.names and here.after is not None:
            most = max(LEAST_NAMES, (BUDGET_NAMES - held) // 2)
            batch = heapq.nsmallest(most, _subfolders(tree.fd, here.after))
            here.after = batch[-1] if len(batch) == most else None
            here.names = [os.fsdecode(name) for name in reversed(batch)]
            held += len(batch)
        if not here.names:
            yield False, names.pop()
            waiting.pop()
            if waiting:
                tree.leave()
            continue
        name = here.names.pop()
        held -= 1
        try:
            tree.enter(name)
        except OSError as error:
            if error.errno in GONE:
                continue
            raise
        names.append(name)
        waiting.append(_Waiting(after=b""))
        yield True, name


def _subfolders(folder: int, after: bytes) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and (name := os.fsencode(entry.name)) > after:
                yield name
