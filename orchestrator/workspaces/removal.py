"""Removing a tree that somebody hostile made: 10,000 levels deep, 100,000 wide, links everywhere, still being written.

Every folder is first moved up beside the root of the tree, so nothing is ever deeper than one level: no recursion, one
open descriptor, no path that is too long, and a crash in between leaves a smaller tree of the same kind. No link is
followed: names are only unlinked, renamed, or opened with O_NOFOLLOW. Knows nothing of workspaces.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ROUNDS: Final = 20  # against a program that still writes there


def remove_tree(tree: Path) -> bool:
    """Remove the folder `tree` and all in it; False when something was left (logged; asking again is safe). Blocking.
    Absent already is fine."""
    try:
        above = os.open(tree.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return remove_below(above, tree.name)
    finally:
        os.close(above)


def remove_below(parent: int, name: str | bytes) -> bool:
    """The same of the folder `name` in the open folder `parent`."""
    try:
        root = _open_in(parent, name)
    except FileNotFoundError:
        return True
    try:
        _widen(root)
        for _ in range(_ROUNDS):
            left = _empty(root)
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)
                return True
            if left is not None:
                break
        log.warning("could not remove all of %r: %s", name, left or "it is being written to")
        return False
    finally:
        os.close(root)


def _open_in(folder: int, name: str | bytes) -> int:
    """Of a folder whose owner took away its own permissions too (matters to an owner, not to root)."""
    try:
        return os.open(name, _FLAGS, dir_fd=folder)
    except PermissionError:
        there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            if not stat.S_ISDIR(os.fstat(there).st_mode):
                raise
            os.chmod(f"/proc/self/fd/{there}", 0o700)  # noqa: PTH101 (no Path has a descriptor)
            return os.open(f"/proc/self/fd/{there}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            os.close(there)


def _open_wide(folder: int, name: str) -> int:
    """To empty it."""
    descriptor = _open_in(folder, name)
    _widen(descriptor)
    return descriptor


def _widen(folder: int) -> None:
    """An owner who is not root needs the right to write in it, which a read-only tree denies."""
    if os.geteuid() != 0:
        with contextlib.suppress(OSError):
            os.fchmod(folder, 0o700)


def _move_up(name: str, new: str, folder: int, root: int) -> None:
    """A folder that changes its parent must be writable itself (its `..` changes)."""
    try:
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=root)
    except PermissionError:
        os.close(_open_wide(folder, name))
        os.rename(name, new, src_dir_fd=folder, dst_dir_fd=root)


def _empty(root: int) -> OSError | None:
    """One pass until nothing is left to move up; the last error."""
    failed: OSError | None = None
    waiting: list[str] = [""]
    while waiting:
        name = waiting.pop()
        try:
            folder = _open_wide(root, name) if name else os.dup(root)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed = error
            continue
        try:
            failed = _level(root, folder, waiting, own=not name) or failed
        finally:
            os.close(folder)
        if name:
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=root)
    return failed


def _level(root: int, folder: int, waiting: list[str], *, own: bool) -> OSError | None:
    """Unlink what is no folder; move each folder up to `root` under a new name and queue it."""
    failed: OSError | None = None
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    name = entry.name
                    if not own:
                        name = f".{secrets.token_hex(8)}"
                        _move_up(entry.name, name, folder, root)
                    waiting.append(name)
                else:
                    os.unlink(entry.name, dir_fd=folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno == errno.EISDIR:
                    continue  # replaced meanwhile: the next round
                failed = error
    return failed
