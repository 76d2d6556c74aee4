"""What a crash or a full disk may not spoil: folders synced, errors of space told apart. Knows no workspace."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import DiskFull

_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """ENOSPC and EDQUOT as DiskFull(where)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no space left for {where}: {error.strerror}", where=where) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlive the machine."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone among all of this host that lock `folder`. For what takes no time: it waits."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def try_lock(folder: Path) -> int | None:
    """A lock on it, held until it is closed or its process ends; None: somebody has it, or the folder is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def sync_filesystem(folder: Path | int) -> None:
    """syncfs(2) of where `folder`, a path or open, lies: one wait for all files just written, instead of one each."""
    descriptor = os.dup(folder) if isinstance(folder, int) else os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if _libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
