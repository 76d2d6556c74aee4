"""A copy of a hostile tree, the whole of it beside the first: modes, times, links, holes, `user.` attributes.

Symlinks are copied as they are, never followed; hard links stay links to one file; holes stay holes. FIFOs, sockets
and devices are left out and counted: they are never opened, and nothing would be behind them. Data is shared with the
first where the filesystem can (FICLONE), else copied inside the kernel. Memory and descriptors are bounded (see
`descent`); which inode became which file is kept on disk, beside the copy. Knows nothing of workspaces.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.durable import sync_filesystem
from orchestrator.errors import Conflict
from orchestrator.workspaces.descent import FOLDER, GONE, Descent, folders
from orchestrator.workspaces.removal import remove_tree

FICLONE: Final = 0x40049409
CHUNK_BYTES: Final = 64 * 1024 * 1024  # of one copy_file_range
PLAIN_BYTES: Final = 1024 * 1024  # of one read where the kernel cannot copy by itself
SMALL_BYTES: Final = 128 * 1024  # up to here read and write cost less than the kernel's pipe between two files
_NO_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})


@dataclass(slots=True)
class Copied:
    """What a copy has. `left_out`: FIFOs, sockets, devices. `shared`: data is shared with the first."""

    files: int = 0
    folders: int = 0
    symlinks: int = 0
    hard_links: int = 0
    left_out: int = 0
    changed: int = 0
    shared: bool = True


def copy_tree(source: Path, target: Path, links: Path) -> Copied:
    """Copy the folder `source` to `target`, which is made, and have it on disk. `links`: a folder on the same
    filesystem, made and removed here. Blocking. Raises OSError (ENOSPC, EDQUOT: no room); Conflict for a tree with
    another filesystem in it."""
    target.mkdir(mode=0o700)
    links.mkdir(mode=0o700)
    copier = _Copier(os.open(links, FOLDER))
    try:
        with Descent(os.open(source, FOLDER)) as there, Descent(os.open(target, FOLDER)) as here:
            for entered, name in folders(there):
                if not entered:
                    _dress(there.fd, here.fd, there.found, there.mode)
                    if name:
                        here.leave()
                    continue
                if name:
                    _make_folder(name, here.fd)
                    here.enter(name)
                copier.done.folders += 1
                copier.entries(there.fd, here.fd)
    finally:
        os.close(copier.links)
    remove_tree(links)
    sync_filesystem(target)
    return copier.done


def _make_folder(name: str, here: int) -> None:
    """Of a name that was copied already, as this folder or as a file, when things change places meanwhile."""
    try:
        os.mkdir(name, 0o700, dir_fd=here)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=here)
            os.mkdir(name, 0o700, dir_fd=here)


class _Copier:
    """Copies what is no folder. `links`: by the number of its inode, each file that has several names."""

    def __init__(self, links: int) -> None:
        self.links = links
        self.done = Copied()

    def entries(self, there: int, here: int) -> None:
        with os.scandir(there) as entries:
            for entry in entries:
                try:
                    self._entry(entry, there, here)
                except FileExistsError:
                    self.done.changed += 1
                except OSError as error:
                    if error.errno not in GONE:
                        raise
                    self.done.changed += 1

    def _entry(self, entry: os.DirEntry[str], there: int, here: int) -> None:
        if entry.is_symlink():
            self._symlink(entry.name, there, here)
        elif entry.is_file(follow_symlinks=False):
            self._file(entry.name, there, here)
        elif not entry.is_dir(follow_symlinks=False):
            self.done.left_out += 1

    def _symlink(self, name: str, there: int, here: int) -> None:
        target = os.readlink(name, dir_fd=there)
        found = os.stat(name, dir_fd=there, follow_symlinks=False)
        os.symlink(target, name, dir_fd=here)
        if os.geteuid() == 0:
            os.chown(name, found.st_uid, found.st_gid, dir_fd=here, follow_symlinks=False)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=here, follow_symlinks=False)
        self.done.symlinks += 1

    def _file(self, name: str, there: int, here: int) -> None:
        # Looked at before it is opened, and opened by what was looked at: a device in its place now is not opened.
        seen = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=there)
        try:
            found = os.fstat(seen)
            if not stat.S_ISREG(found.st_mode):
                self.done.changed += 1
                return
            known = str(found.st_ino)
            if found.st_nlink > 1:
                try:
                    os.link(known, name, src_dir_fd=self.links, dst_dir_fd=here)
                    self.done.hard_links += 1
                    return
                except OSError as error:
                    if error.errno == errno.EMLINK:  # as many names as the filesystem gives one file: a second one
                        os.unlink(known, dir_fd=self.links)
                    elif error.errno != errno.ENOENT:
                        raise
            first, mode = reopen(seen)
        finally:
            os.close(seen)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            second = os.open(name, flags, 0o600, dir_fd=here)
            try:
                self._content(first, second, found, name)
                _dress(first, second, found, found.st_mode)
            finally:
                os.close(second)
        finally:
            if mode is not None:
                os.fchmod(first, mode)
            os.close(first)
        self.done.files += 1
        if found.st_nlink > 1:
            with contextlib.suppress(FileExistsError):
                os.link(name, known, src_dir_fd=here, dst_dir_fd=self.links, follow_symlinks=False)

    def _content(self, first: int, second: int, found: os.stat_result, name: str) -> None:
        if found.st_size == 0:
            return
        if self.done.shared:
            try:
                fcntl.ioctl(second, FICLONE, first)
                return
            except OSError as error:
                if error.errno not in _NO_CLONE:
                    raise
                self.done.shared = False
        try:
            os.ftruncate(second, found.st_size)
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise Conflict(
                f"the file {name!r} has {found.st_size} bytes: more than the filesystem of the copy allows",
                state="too_large",
                remedy="make it smaller, or use a filesystem with larger files",
            ) from error
        if found.st_blocks * 512 >= found.st_size:
            _copy_range(first, second, 0, found.st_size)
            return
        at = 0
        while at < found.st_size:
            try:
                at = os.lseek(first, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole to the end
                    return
                raise
            end = min(os.lseek(first, at, os.SEEK_HOLE), found.st_size)
            _copy_range(first, second, at, end)
            at = end


def reopen(seen: int) -> tuple[int, int | None]:
    """To read what an O_PATH descriptor has, whatever its name means by now: (descriptor, mode to give back)."""
    path = f"/proc/self/fd/{seen}"
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(path, flags), None
    except PermissionError:  # its owner, which a worker that is not root is too, took his right to it away
        mode = os.fstat(seen).st_mode & 0o7777
        os.chmod(path, mode | 0o400)  # noqa: PTH101 (no Path has a descriptor)
        return os.open(path, flags), mode


def _copy_range(first: int, second: int, begin: int, end: int) -> None:
    at = begin
    while at < end:
        if end - at <= SMALL_BYTES:
            done = _copy_plainly(first, second, at, end)
        else:
            try:
                done = os.copy_file_range(first, second, min(CHUNK_BYTES, end - at), at, at)
            except OSError as error:
                if error.errno not in _NO_CLONE:
                    raise
                done = _copy_plainly(first, second, at, end)
        if done == 0:
            return  # made shorter meanwhile
        at += done


def _copy_plainly(first: int, second: int, at: int, end: int) -> int:
    data = os.pread(first, min(PLAIN_BYTES, end - at), at)
    return os.pwrite(second, data, at) if data else 0


def _dress(first: int, second: int, found: os.stat_result, mode: int) -> None:
    """Owner before mode: chown takes setuid bits away."""
    with contextlib.suppress(OSError):  # a filesystem without attributes; or with less room for them
        for name in os.listxattr(first):
            if name.startswith("user."):
                os.setxattr(second, name, os.getxattr(first, name))
    if os.geteuid() == 0:
        os.fchown(second, found.st_uid, found.st_gid)
    os.fchmod(second, stat.S_IMODE(mode))
    os.utime(second, ns=(found.st_atime_ns, found.st_mtime_ns))
