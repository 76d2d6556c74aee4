"""The only way into a workspace: files looked up, listed, read and written without leaving it.

Whatever lies there is hostile and may change while we look: every name goes through `lookup.py`, each time. What takes
more than a few lines has a file of its own beside this one. Knows no HTTP, and not whether a sandbox runs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from orchestrator.durable import disk_errors, locked
from orchestrator.errors import Changed, Conflict, NotFound
from orchestrator.workspace import ArchiveFormat, FilePage, FileStat, Unpacked, UnpackLimits
from orchestrator.workspaces import archiving, listing, moving, unpacking
from orchestrator.workspaces.globbing import Glob
from orchestrator.workspaces.lookup import (
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    PERMISSIONS,
    etag_of,
    file_stat,
    found_stat,
    give_to_harness,
    inside,
    looked_up,
    open_folder,
    open_regular,
    outside,
)
from orchestrator.workspaces.openat2 import open_inside
from orchestrator.workspaces.watching import InotifyWatch

__all__ = [
    "MAX_NAME_BYTES",
    "MAX_PATH_BYTES",
    "UPLOAD_PREFIX",
    "RegularFile",
    "VolumeFiles",
    "found_stat",
    "give_to_harness",
    "inside",
    "outside",
]

UPLOAD_PREFIX: Final = ".carrel-upload-"
_SCANNED: Final = 200_000  # entries looked at for one page of `find`: about a second


class RegularFile:
    """The port's OpenFile: content and stat are of one opened file, whatever its name means by now."""

    def __init__(self, descriptor: int, found: FileStat) -> None:
        self._descriptor = descriptor
        self.stat = found
        self.etag = found.etag

    def read(self, offset: int, size_bytes: int) -> bytes:
        return os.pread(self._descriptor, size_bytes, offset)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class VolumeFiles:
    """The port's Files on the directory `vol`. Holds nothing open between calls. `read_only`: a snapshot's, which
    nothing changes."""

    def __init__(self, vol: Path, *, read_only: bool = False) -> None:
        self._vol = vol
        self._read_only = read_only

    def stat(self, path: str) -> FileStat:
        name = inside(path)
        with self._root() as root, looked_up(path):
            descriptor = open_inside(root, name, os.O_PATH | os.O_NOFOLLOW)
            try:
                return file_stat(descriptor, name)
            finally:
                os.close(descriptor)

    def list(self, path: str, *, recursive: bool = False, after: str = "", limit: int = 1000) -> Sequence[FileStat]:
        with self._folder(path) as (folder, prefix):
            begin = _begin_after(os.fsencode(after.removeprefix("/workspace/")), prefix)
            if begin is None:
                return []
            return [
                found_stat(entry.stat, prefix + entry.name, entry.target)
                for entry in listing.page(folder, after=begin, limit=limit, recursive=recursive)
            ]

    def open(self, path: str) -> RegularFile:
        name = inside(path)
        with self._root() as root, looked_up(path):
            descriptor = open_regular(root, name, links=True)
        return RegularFile(descriptor, file_stat(descriptor, name))

    def find(self, path: str, pattern: str, *, after: str = "", limit: int = 1000) -> FilePage:
        glob = Glob(os.fsencode(pattern))
        found: list[FileStat] = []
        with self._folder(path) as (folder, prefix):
            begin = _begin_after(os.fsencode(after.removeprefix("/workspace/")), prefix)
            if begin is None:
                return FilePage([])
            for scanned, entry in enumerate(listing.walk(folder, after=begin), 1):
                if glob.fits(entry.name):
                    found.append(found_stat(entry.stat, prefix + entry.name, entry.target))
                if len(found) >= limit or scanned >= _SCANNED:
                    return FilePage(found, os.fsdecode(prefix + entry.name))
        return FilePage(found)

    def write(
        self,
        path: str,
        chunks: Iterable[bytes],
        *,
        mode: int = 0o644,
        if_match: str | None = None,
        if_absent: bool = False,
        durable: bool = True,
    ) -> FileStat:
        """As the port says. `durable=False`: the caller syncs (many files laid in at once)."""
        name = inside(path)
        folder_name, _, last = name.rpartition(b"/")
        if not folder_name:
            raise Conflict(f"{path or '/workspace'} is a folder", state="directory", remedy="name a file in it")
        with self._root(change=True) as root, looked_up(path), disk_errors("workspace"):
            if if_match is not None and not _is_there(root, name):
                raise Changed(f"{path} is not there", etag="", remedy="leave the condition out to make it")
            folder = open_folder(root, folder_name)
            try:
                _check(folder, last, path, if_match, if_absent)
                temporary = UPLOAD_PREFIX + secrets.token_hex(8)
                try:
                    written = self._fill(folder, temporary, name, chunks, mode & PERMISSIONS, durable)
                    if if_match is None and not if_absent:
                        os.rename(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
                    else:
                        # Two conditional writes through any api of this host are one after the other. The lock is on a
                        # folder that nobody inside can open, lest they hold it.
                        with locked(self._vol.parent):
                            _check(folder, last, path, if_match, if_absent)
                            os.rename(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(temporary, dir_fd=folder)
                    raise
                if durable:
                    os.fsync(folder)
                return written
            finally:
                os.close(folder)

    @staticmethod
    def _fill(folder: int, temporary: str, name: bytes, chunks: Iterable[bytes], mode: int, durable: bool) -> FileStat:
        # A crash leaves this file to the workspace. Accepted: a name is needed to replace another in one step, and only
        # root's own scratch space could hide it, on another filesystem.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            give_to_harness(file.fileno())
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
            return file_stat(file.fileno(), name)

    def mkdir(self, path: str) -> FileStat:
        name = inside(path)
        with self._root(change=True) as root, looked_up(path), disk_errors("workspace"):
            folder = open_folder(root, name)
            try:
                os.fsync(folder)
                return file_stat(folder, name)
            finally:
                os.close(folder)

    def move(self, path: str, to: str, *, overwrite: bool = False) -> FileStat:
        old, new = inside(path), inside(to, field="to")
        with self._root(change=True) as root:
            moving.move(root, old, new, path, to, overwrite=overwrite)
        return self.stat(to)

    def remove(self, path: str, *, recursive: bool = False) -> None:
        name = inside(path)
        with self._root(change=True) as root:
            moving.remove(root, name, path, recursive=recursive)

    def archive(self, path: str, format: ArchiveFormat) -> archiving.Pieces:
        # The folder is opened now, so that what is wrong with it is said before a piece is asked for.
        with self._root() as root, looked_up(path):
            folder = open_inside(root, inside(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        return archiving.Pieces(folder, format)

    def unpack(self, path: str, chunks: Iterable[bytes], format: ArchiveFormat, limits: UnpackLimits) -> Unpacked:
        with self._root(change=True) as root:
            return unpacking.unpack(root, inside(path), path, chunks, format, limits)

    def watch(self, path: str) -> InotifyWatch:
        with self._root() as root, looked_up(path):
            name = inside(path)
            folder = open_inside(root, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        prefix = os.fsencode(outside(name))
        return InotifyWatch(folder, prefix + b"/" if prefix else b"")

    @contextlib.contextmanager
    def _folder(self, path: str) -> Iterator[tuple[int, bytes]]:
        """It, open, and what the paths of its entries begin with."""
        name = inside(path)
        with self._root() as root, looked_up(path):
            folder = open_inside(root, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        try:
            prefix = os.fsencode(outside(name))
            yield folder, prefix + b"/" if prefix else b""
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _root(self, *, change: bool = False) -> Iterator[int]:
        if change and self._read_only:
            raise Conflict("a snapshot cannot be changed", state="read_only", remedy="fork it, and write there")
        try:
            root = os.open(self._vol, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound("the workspace is not here", kind="workspace", id="") from error
        try:
            yield root
        finally:
            os.close(root)


def _begin_after(after: bytes, prefix: bytes) -> bytes | None:
    """Where a listing below `prefix` begins when all up to the path `after` has been seen; None = it is over."""
    if after.startswith(prefix):
        return after[len(prefix) :]
    return b"" if after < prefix else None


def _is_there(root: int, name: bytes) -> bool:
    try:
        os.close(open_inside(root, name, os.O_PATH | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


def _check(folder: int, last: bytes, path: str, if_match: str | None, if_absent: bool) -> None:
    """Raises Changed where the condition of a write does not hold."""
    if if_match is None and not if_absent:
        return
    try:
        found = os.stat(last, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        if if_match is not None:
            raise Changed(f"{path} is not there", etag="", remedy="leave the condition out to make it") from None
        return
    etag = etag_of(found) if stat.S_ISREG(found.st_mode) else ""
    if if_absent:
        raise Changed(f"{path} is there already", etag=etag, remedy="leave the condition out to replace it")
    if if_match not in ("*", etag):
        raise Changed(
            f"{path} is another one by now", etag=etag, remedy="read it again, and write what follows from it"
        )
