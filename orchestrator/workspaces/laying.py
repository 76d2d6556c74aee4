"""Layers of a snapshot into an empty folder of ours, one over the other: nobody else looks in meanwhile.

What comes may be anybody's (a file somebody imports): names stay below the folder, no link is followed, nothing is
written through what an earlier entry laid, and what comes out is bounded and counted. Replaced is whole: a file that
comes again is a new one. Knows no archive.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from orchestrator.errors import Conflict
from orchestrator.workspace import HARNESS_UID, UnpackLimits
from orchestrator.workspaces.descent import FOLDER, open_anyway
from orchestrator.workspaces.incoming import Incoming, bad_archive
from orchestrator.workspaces.layer_tar import Entry, entries
from orchestrator.workspaces.lookup import MAX_NAME_BYTES, give_to_harness
from orchestrator.workspaces.removal import remove_below

KEEP_OPEN: Final = 48
_NO_LIMITS: Final = UnpackLimits(1 << 62, 1 << 62, 1 << 62)
_ZEROS: Final = bytes(4096)


def lay(top: Path, layers: Iterable[Iterable[bytes]], limits: UnpackLimits | None = None) -> None:
    """Into the empty folder `top`, the oldest first; each is asked for when the one before is laid. Without `limits`
    it is our own, and as large as it is. Blocking. Raises BadInput(field="archive"), TooLarge, OSError; Conflict for a
    file that is larger than this filesystem allows."""
    with _Ground(top) as ground:
        for chunks in layers:
            incoming = Incoming(chunks, limits or _NO_LIMITS)
            for entry in entries(incoming):
                incoming.count_entry()
                ground.lay(entry, incoming)
            incoming.drain()
    top.chmod(0o755)


class _Level:
    """A folder on the way to where we are; `fd` -1 = closed for now. `dressed`: how it is to be left."""

    def __init__(self, name: bytes, fd: int) -> None:
        self.name = name
        self.fd = fd
        found = os.fstat(fd)
        self.found = (found.st_dev, found.st_ino)
        self.dressed: Entry | None = None
        self.times: tuple[int, int] | None = None
        self.mode: int | None = None  # its owner had no right to it: given back


class _Ground:
    """Where we are in the new tree: layers come folder by folder, so most entries lie in the one that is open."""

    def __init__(self, top: Path) -> None:
        self._levels = [_Level(b"", os.open(top, FOLDER))]

    def __enter__(self) -> _Ground:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            while len(self._levels) > 1:
                self._leave()
        except OSError:
            if kind is None:
                raise
        finally:
            for level in self._levels:
                if level.fd >= 0:
                    os.close(level.fd)

    @property
    def _fd(self) -> int:
        return self._levels[-1].fd

    def lay(self, entry: Entry, incoming: Incoming) -> None:
        names = _names(entry.path)
        if not names:
            return  # the folder itself
        if entry.kind == "directory":
            self._go(names)
            self._levels[-1].dressed = entry
            return
        self._go(names[:-1])
        name = names[-1]
        if entry.kind == "removed":
            self._remove(name)
            return
        if entry.kind == "link":
            self._link(name, entry)
            return
        self._remove(name)
        if entry.kind == "symlink":
            if not entry.target or b"\0" in entry.target:
                raise bad_archive(entry.path, "is a link to nothing")
            os.symlink(entry.target, name, dir_fd=self._fd)
            if os.geteuid() == 0:
                os.chown(name, HARNESS_UID, HARNESS_UID, dir_fd=self._fd, follow_symlinks=False)
            os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=self._fd, follow_symlinks=False)
        else:
            self._file(name, entry, incoming)

    # -- folders ------------------------------------------------------------------------------------------------------

    def _go(self, names: list[bytes]) -> None:
        """To this folder, made where it is missing; what is there and is none gives way."""
        same = 0
        while same < min(len(names), len(self._levels) - 1) and self._levels[same + 1].name == names[same]:
            same += 1
        while len(self._levels) - 1 > same:
            self._leave()
        for name in names[same:]:
            self._enter(name)

    def _enter(self, name: bytes) -> None:
        mode: int | None = None
        try:
            fd, mode = open_anyway(os.fsdecode(name), self._fd, FOLDER)
        except FileNotFoundError:
            fd = self._make(name)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise
            os.unlink(name, dir_fd=self._fd)
            fd = self._make(name)
        level = _Level(name, fd)
        level.mode = mode
        before = os.fstat(fd)
        level.times = (before.st_atime_ns, before.st_mtime_ns)
        self._levels.append(level)
        far = len(self._levels) - 1 - KEEP_OPEN
        if far > 0 and self._levels[far].fd >= 0:
            os.close(self._levels[far].fd)
            self._levels[far].fd = -1

    def _make(self, name: bytes) -> int:
        os.mkdir(name, 0o700, dir_fd=self._fd)
        fd = os.open(name, FOLDER, dir_fd=self._fd)
        give_to_harness(fd)
        os.fchmod(fd, 0o755)
        return fd

    def _leave(self) -> None:
        below = self._levels.pop()
        above = self._levels[-1]
        if above.fd < 0:
            fd = os.open("..", FOLDER, dir_fd=below.fd)
            found = os.fstat(fd)
            assert (found.st_dev, found.st_ino) == above.found  # nobody else writes here
            above.fd = fd
        try:
            if below.dressed is not None:
                _dress(below.fd, below.dressed)
                return
            if below.mode is not None:
                os.fchmod(below.fd, below.mode)
            if below.times is not None:
                os.utime(below.fd, ns=below.times)
        finally:
            os.close(below.fd)

    # -- what is in them ----------------------------------------------------------------------------------------------

    def _remove(self, name: bytes) -> None:
        try:
            os.unlink(name, dir_fd=self._fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            remove_below(self._fd, name)

    def _file(self, name: bytes, entry: Entry, incoming: Incoming) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=self._fd)
        try:
            if entry.extents is not None:
                _set_size(file, entry)
            for at, piece in _placed(entry):
                incoming.count_bytes(len(piece))
                if entry.extents is None:
                    _write(file, at, piece)
                else:
                    _write_data(file, at, piece)
            give_to_harness(file)
            _dress(file, entry)
        finally:
            os.close(file)

    def _link(self, name: bytes, entry: Entry) -> None:
        names = _names(entry.target)
        if not names or names == _names(entry.path):
            raise bad_archive(entry.path, "is a hard link to nothing")
        folder = os.dup(self._top())
        try:
            for one in names[:-1]:
                deeper = os.open(one, FOLDER, dir_fd=folder)
                os.close(folder)
                folder = deeper
            if not stat.S_ISREG(os.stat(names[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                raise bad_archive(entry.path, "is a hard link to what is no file")
            self._remove(name)
            os.link(names[-1], name, src_dir_fd=folder, dst_dir_fd=self._fd, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise bad_archive(entry.path, "is a hard link to what is not in the archive") from error
            raise
        finally:
            os.close(folder)

    def _top(self) -> int:
        return self._levels[0].fd


def _names(path: bytes) -> list[bytes]:
    """Raises BadInput for what leads out, or says nothing. `./x/` is `x`, as tar programs write it."""
    if path.startswith(b"/") or b"\0" in path:
        raise bad_archive(path, "has a path that leads out of it")
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise bad_archive(path, "has a path that leads out of it")
    if any(len(name) > MAX_NAME_BYTES for name in names):
        raise bad_archive(path, "has a name that is too long")
    return names


def _placed(entry: Entry) -> Iterator[tuple[int, bytes]]:
    """Pieces of its content, each with where it belongs."""
    at, left = 0, -1
    extents = iter(entry.extents or ())
    for piece in entry.content:
        while piece:
            if entry.extents is not None and left <= 0:
                at, left = next(extents, (0, 0))
                if left == 0:
                    if at == 0:
                        return
                    continue
            part = piece if left < 0 else piece[:left]
            yield at, part
            at += len(part)
            left = left - len(part) if left > 0 else left
            piece = piece[len(part) :]


def _set_size(file: int, entry: Entry) -> None:
    try:
        os.ftruncate(file, entry.size_bytes)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise Conflict(
            f"the file {entry.path[:200].decode(errors='backslashreplace')!r} has {entry.size_bytes} bytes: more than"
            " the filesystem here allows",
            state="too_large",
            remedy="use a filesystem with larger files",
        ) from error


def _write(file: int, at: int, piece: bytes) -> None:
    done = 0
    while done < len(piece):
        done += os.pwrite(file, piece[done:], at + done)


def _write_data(file: int, at: int, piece: bytes) -> None:
    """Of a file with holes, small ones of which came as zeros: they are holes again."""
    for begin in range(0, len(piece), len(_ZEROS)):
        part = piece[begin : begin + len(_ZEROS)]
        if part != _ZEROS[: len(part)]:
            _write(file, at + begin, part)


def _dress(file: int, entry: Entry) -> None:
    """Attributes before the mode, which may take the right to them away; owner before both: chown takes setuid bits."""
    with contextlib.suppress(OSError):  # a filesystem without attributes; or with less room for them
        for name in os.listxattr(file):
            if name.startswith("user.") and os.fsencode(name) not in entry.attributes:
                os.removexattr(file, name)
        for attribute, value in entry.attributes.items():
            if attribute.startswith(b"user."):
                os.setxattr(file, attribute, value)
    os.fchmod(file, entry.mode)
    with contextlib.suppress(OverflowError):
        os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
