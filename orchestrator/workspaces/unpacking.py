"""An archive into a workspace: received and laid out beside everything first, checked entry by entry, then renamed into
its place. Never by tarfile's or zipfile's own extraction.

The place beside is a folder of `vol` itself, which belongs to us and not to the harness: no program inside looks on or
renames under our hands. What leaves the target, links that do, devices, and more than the limits allow end it all, and
nothing was written where anybody would look.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Final

from orchestrator.durable import disk_errors, sync_filesystem
from orchestrator.errors import Conflict
from orchestrator.workspace import ArchiveFormat, Unpacked, UnpackLimits
from orchestrator.workspaces import listing
from orchestrator.workspaces.incoming import Incoming, Member, bad_archive
from orchestrator.workspaces.lookup import (
    MAX_NAME_BYTES,
    PERMISSIONS,
    give_to_harness,
    looked_up,
    open_changeable,
    open_folder,
)
from orchestrator.workspaces.openat2 import open_inside
from orchestrator.workspaces.removal import remove_below
from orchestrator.workspaces.renaming import rename_new
from orchestrator.workspaces.tar_reading import tar_members
from orchestrator.workspaces.zip_reading import zip_members

_STAGE: Final = ".carrel-unpack-"
_STALE_S: Final = 24 * 3600  # a stage this old has no writer any more
MAX_DEEP: Final = 256
MAX_PATH_BYTES: Final = 3500  # below the target, whose own name takes room as well
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_NOFOLLOW
_MTIME_MAX_S: Final = 253_402_300_799


def unpack(
    root: int, name: bytes, path: str, chunks: Iterable[bytes], format: ArchiveFormat, limits: UnpackLimits
) -> Unpacked:
    """The port's `unpack` of `name` below the open `vol`."""
    vol = open_inside(root, b".", _FOLDER)
    stage_name = os.fsencode(_STAGE + secrets.token_hex(8))
    try:
        _sweep(vol)
        with looked_up(path), disk_errors("workspace"):
            os.mkdir(stage_name, 0o700, dir_fd=vol)
            stage = os.open(stage_name, _FOLDER | os.O_CLOEXEC, dir_fd=vol)
            try:
                incoming = Incoming(chunks, limits)
                layout = _Layout(stage, incoming)
                try:
                    for member in zip_members(incoming, vol) if format == "zip" else tar_members(incoming, format):
                        layout.add(member)
                finally:
                    layout.close()
                incoming.drain()
                sync_filesystem(stage)
                os.fchmod(stage, 0o755)
                give_to_harness(stage)
                _publish(vol, stage_name, stage, root, name, path)
                return layout.made
            finally:
                os.close(stage)
    finally:
        remove_below(vol, stage_name)
        os.close(vol)


class _Layout:
    """The stage, filled member by member."""

    def __init__(self, stage: int, incoming: Incoming) -> None:
        self._stage = stage
        self._incoming = incoming
        self._folder_name: bytes = b""  # of the folder that is open: archives come folder by folder
        self._folder = os.dup(stage)
        self.made = Unpacked()

    def close(self) -> None:
        os.close(self._folder)

    def add(self, member: Member) -> None:
        names = _names(member)
        self._incoming.count_entry()
        if not names:
            return  # the folder itself
        if member.kind == "directory":
            self._enter(names)
            os.fchmod(self._folder, member.mode & PERMISSIONS | 0o700)
            return
        self._enter(names[:-1])
        last = names[-1]
        self._make_room(last, member)
        if member.kind == "file":
            self._file(last, member)
        elif member.kind == "symlink":
            _check_link(names, member)
            os.symlink(member.target, last, dir_fd=self._folder)
            if os.geteuid() == 0:
                inode = os.stat(".", dir_fd=self._folder)
                os.chown(last, inode.st_uid, inode.st_gid, dir_fd=self._folder, follow_symlinks=False)
            self._count(links=1)
        else:
            self._hard_link(last, member)

    def _enter(self, names: list[bytes]) -> None:
        """Make it the open folder, made where it is missing. Through no link: what an archive lays out is lexical."""
        wanted = b"/".join(names)
        if wanted == self._folder_name:
            return
        here, at = os.dup(self._stage), 0
        if self._folder_name and wanted.startswith(self._folder_name + b"/"):
            os.close(here)
            here, at = os.dup(self._folder), self._folder_name.count(b"/") + 1
        try:
            for name in names[at:]:
                try:
                    os.mkdir(name, 0o755, dir_fd=here)
                except FileExistsError:
                    inner = self._existing(here, name, wanted)
                else:
                    inner = os.open(name, _FOLDER | os.O_CLOEXEC, dir_fd=here)
                    give_to_harness(inner)
                    self._incoming.count_entry()
                    self._count(directories=1)
                os.close(here)
                here = inner
        except BaseException:
            os.close(here)
            raise
        os.close(self._folder)
        self._folder, self._folder_name = here, wanted

    @staticmethod
    def _existing(here: int, name: bytes, wanted: bytes) -> int:
        try:
            return os.open(name, _FOLDER | os.O_CLOEXEC, dir_fd=here)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise bad_archive(wanted, "lies below a link or a file of the same archive") from error
            raise

    def _make_room(self, last: bytes, member: Member) -> None:
        """A name that comes twice: the later one counts, as for tar."""
        try:
            found = os.stat(last, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            raise bad_archive(member.name, "is a folder and something else")
        os.unlink(last, dir_fd=self._folder)

    def _file(self, last: bytes, member: Member) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(last, flags, 0o600, dir_fd=self._folder)
        size = 0
        with os.fdopen(descriptor, "wb") as file:
            for piece in member.content:
                size += len(piece)
                self._incoming.count_bytes(len(piece))
                file.write(piece)
            file.flush()
            give_to_harness(file.fileno())
            os.fchmod(file.fileno(), member.mode & PERMISSIONS)
            if 0 <= member.mtime_s <= _MTIME_MAX_S:
                os.utime(file.fileno(), (member.mtime_s, member.mtime_s))
        self._count(files=1, size_bytes=size)

    def _hard_link(self, last: bytes, member: Member) -> None:
        names = _names(Member(member.target, "file"))
        if not names:
            raise bad_archive(member.name, "is a hard link to nothing")
        try:
            folder = open_inside(self._stage, b"/".join(names[:-1]) or b".", _FOLDER, links=False)
        except OSError as error:
            raise bad_archive(member.name, "is a hard link to what is not in the archive") from error
        try:
            if not stat.S_ISREG(os.stat(names[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                raise bad_archive(member.name, "is a hard link to what is no file")
            os.link(names[-1], last, src_dir_fd=folder, dst_dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError as error:
            raise bad_archive(member.name, "is a hard link to what is not in the archive") from error
        finally:
            os.close(folder)
        self._count(links=1)

    def _count(self, *, files: int = 0, directories: int = 0, links: int = 0, size_bytes: int = 0) -> None:
        made = self.made
        self.made = Unpacked(
            made.files + files,
            made.directories + directories,
            made.links + links,
            made.size_bytes + size_bytes,
        )


def _names(member: Member) -> list[bytes]:
    """The parts of a member's name. Raises BadInput for one that leads elsewhere."""
    name = member.name
    if name.startswith(b"/"):
        raise bad_archive(name, "is absolute")
    names = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in names:
        raise bad_archive(name, "holds '..'")
    if b"\0" in name or len(name) > MAX_PATH_BYTES or any(len(part) > MAX_NAME_BYTES for part in names):
        raise bad_archive(name, "is too long, or holds NUL")
    if len(names) > MAX_DEEP:
        raise bad_archive(name, f"is more than {MAX_DEEP} folders deep")
    return names


def _check_link(names: list[bytes], member: Member) -> None:
    """A link may go up only first, and not above the archive's own root; then down, where every link passed this."""
    target = member.target
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    up = 0
    while up < len(parts) and parts[up] == b"..":
        up += 1
    if not target or target.startswith(b"/") or b"\0" in target or b".." in parts[up:] or up > len(names) - 1:
        raise bad_archive(member.name, f"is a link that leads out ({target.decode(errors='replace')[:200]!r})")


def _publish(vol: int, stage_name: bytes, stage: int, root: int, name: bytes, path: str) -> None:
    above, _, last = name.rpartition(b"/")
    if above:
        folder = open_folder(root, above)
        try:
            rename_new(stage_name, last, old_folder=vol, new_folder=folder)
            os.fsync(folder)
            return
        except FileExistsError:
            pass
        finally:
            os.close(folder)
    target = open_changeable(root, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    try:
        _check_merge(stage, target, path)
        _merge(stage, target, path)
        sync_filesystem(target)
    finally:
        os.close(target)


def _check_merge(stage: int, target: int, path: str) -> None:
    """Raises Conflict before anything was renamed."""
    for entry in listing.walk(stage):
        above, _, last = entry.name.rpartition(b"/")
        try:
            folder = open_inside(target, above or b".", _FOLDER, links=False)
        except OSError:
            continue  # not there, or said already
        try:
            found = os.stat(last, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        finally:
            os.close(folder)
        if stat.S_ISDIR(found.st_mode) != stat.S_ISDIR(entry.stat.st_mode):
            raise _in_the_way(path, entry.name)


def _merge(stage: int, target: int, path: str) -> None:
    waiting: list[bytes] = [b""]
    while waiting:
        name = waiting.pop()
        with contextlib.ExitStack() as held:
            try:
                old = held.enter_context(_opened(stage, name))
                new = held.enter_context(_opened(target, name))
            except OSError as error:
                raise _in_the_way(path, name) from error
            for entry in listing.walk(old, recursive=False):
                try:
                    if not stat.S_ISDIR(entry.stat.st_mode):
                        os.rename(entry.name, entry.name, src_dir_fd=old, dst_dir_fd=new)
                        continue
                    rename_new(entry.name, entry.name, old_folder=old, new_folder=new)
                except FileExistsError:
                    waiting.append(name + b"/" + entry.name if name else entry.name)
                except (IsADirectoryError, NotADirectoryError) as error:
                    raise _in_the_way(path, entry.name) from error


@contextlib.contextmanager
def _opened(folder: int, name: bytes) -> Iterator[int]:
    descriptor = open_inside(folder, name or b".", _FOLDER, links=False)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _in_the_way(path: str, name: bytes) -> Conflict:
    shown = name.decode(errors="replace")
    return Conflict(
        f"{path or '/workspace'} has something of another kind at {shown}",
        state="there",
        remedy="remove it first, or unpack elsewhere",
    )


def _sweep(vol: int) -> None:
    """Stages that a crash left."""
    with os.scandir(vol) as entries:
        stale = [
            entry.name
            for entry in entries
            if entry.name.startswith(_STAGE) and time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_S
        ]
    for name in stale:
        remove_below(vol, name)
