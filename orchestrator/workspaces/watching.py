"""What changes below a folder, told by inotify(7) from outside: the sandbox binds the same inodes, so nothing inside is
asked and nothing inside notices. Bounded in folders and in what is told at once; beyond that it says so (`overflow`),
for a watcher that believes it saw everything is worse off than one that lists again.

A folder is named by the descriptor it was opened with (through no link), so a path exchanged meanwhile watches nothing
else. Knows no HTTP.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Final

from orchestrator.errors import TooMany
from orchestrator.workspace import ChangeKind, FileChange
from orchestrator.workspaces import listing
from orchestrator.workspaces.openat2 import open_inside

MAX_FOLDERS: Final = 8192  # of one watch: the kernel keeps about 1 KiB for each
MAX_TOLD: Final = 4096  # changes of one read
MAX_WALKED: Final = 50_000  # entries looked at in one read: folders that come and go faster than they can be walked
_MOST_READS: Final = 32  # in one read: a program may make the same change without end
_READ_BYTES: Final = 64 << 10

_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_UNMOUNT, _Q_OVERFLOW, _IGNORED, _ISDIR = 0x2000, 0x4000, 0x8000, 0x40000000
_ONLYDIR: Final = 0x01000000
_MASK: Final = (
    _MODIFY
    | _ATTRIB
    | _CLOSE_WRITE
    | _MOVED_FROM
    | _MOVED_TO
    | _CREATE
    | _DELETE
    | _DELETE_SELF
    | _MOVE_SELF
    | _ONLYDIR
)
_HEAD: Final = struct.Struct("iIII")

_libc = ctypes.CDLL(None, use_errno=True)


class InotifyWatch:
    """The port's Watch on the open folder `folder`, which it closes. `prefix` begins the paths it tells."""

    def __init__(self, folder: int, prefix: bytes) -> None:
        self._root = folder
        self._prefix = prefix
        self._names: dict[int, bytes] = {}  # watch → folder, relative to the root
        self._watches: dict[bytes, int] = {}
        self._told: dict[tuple[ChangeKind, bytes], None] = {}
        self._full = False
        self._overflow = False  # to be told
        self._lost = False  # more folders came than could be walked: not all are watched any more
        self._walked = 0
        descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            os.close(folder)
            raise _too_many()
        self._inotify = int(descriptor)
        try:
            if not self._add(b""):
                raise _too_many()
            self._add_below(b"", tell=False)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._inotify

    def read(self) -> Sequence[FileChange]:
        self._told = {}
        self._walked = 0
        ended = False
        for _ in range(_MOST_READS):
            if len(self._told) >= MAX_TOLD or self._lost:
                break
            try:
                data = os.read(self._inotify, _READ_BYTES)
            except BlockingIOError:
                break
            for watch, mask, name in _events(data):
                if mask & (_Q_OVERFLOW | _UNMOUNT):
                    self._overflow = True
                elif mask & (_DELETE_SELF | _MOVE_SELF):
                    ended |= self._names.get(watch) == b""
                elif mask & _IGNORED:
                    self._forget(watch)
                elif (folder := self._names.get(watch)) is not None and name:
                    self._happened(folder + b"/" + name if folder else name, mask)
        said = [FileChange(change, os.fsdecode(self._prefix + path)) for change, path in self._told]
        if self._overflow:
            self._overflow = False
            said.insert(0, FileChange("overflow"))
        # While we hold the folder open, the kernel tells of its removal to nobody.
        if ended or self._lost or not os.fstat(self._root).st_nlink:
            said.append(FileChange("ended"))
        return said

    def close(self) -> None:
        for descriptor in (self._inotify, self._root):
            if descriptor >= 0:
                os.close(descriptor)
        self._inotify = self._root = -1

    def _happened(self, path: bytes, mask: int) -> None:
        if mask & (_CREATE | _MOVED_TO):
            self._tell("created", path)
            if mask & _ISDIR:
                self._add_below(path, tell=True)
        elif mask & (_DELETE | _MOVED_FROM):
            self._tell("removed", path)
            if mask & _ISDIR:
                self._drop(path)
        elif not mask & _ISDIR:
            self._tell("modified", path)

    def _tell(self, change: ChangeKind, path: bytes) -> None:
        if len(self._told) >= MAX_TOLD:
            self._overflow = True
        else:
            # In the order of the last time: created, removed, created again ends with what is there.
            self._told.pop((change, path), None)
            self._told[change, path] = None

    def _add(self, name: bytes) -> bool:
        """Watch the folder `name`; False where that is not to be had."""
        if len(self._names) >= MAX_FOLDERS:
            self._run_full()
            return False
        try:
            folder = open_inside(self._root, name or b".", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, links=False)
        except OSError:
            return False  # gone again, or exchanged: its parent tells
        try:
            watch = int(_libc.inotify_add_watch(self._inotify, b"/proc/self/fd/%d" % folder, _MASK))
            number = ctypes.get_errno()
        finally:
            os.close(folder)
        if watch < 0:
            if number in (errno.ENOSPC, errno.ENOMEM):
                self._run_full()
            return False
        if (old := self._names.get(watch)) is not None:
            self._watches.pop(old, None)  # the same inode under its new name
        self._names[watch] = name
        self._watches[name] = watch
        return True

    def _add_below(self, name: bytes, *, tell: bool) -> None:
        """The folder and all in it; what lay in it before it was watched is told once it is."""
        if name and not self._add(name):
            return
        try:
            folder = open_inside(self._root, name or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, links=False)
        except OSError:
            return
        try:
            for entry in listing.walk(folder):
                path = name + b"/" + entry.name if name else entry.name
                if tell:
                    self._tell("created", path)
                if stat.S_ISDIR(entry.stat.st_mode):
                    self._add(path)
                self._walked += 1
                if tell and self._walked > MAX_WALKED:
                    self._overflow = self._lost = True
                if self._lost or (self._full and (not tell or self._overflow)):
                    return
        finally:
            os.close(folder)

    def _drop(self, path: bytes) -> None:
        for name in [one for one in self._watches if one == path or one.startswith(path + b"/")]:
            watch = self._watches.pop(name)
            self._names.pop(watch, None)
            _libc.inotify_rm_watch(self._inotify, watch)
        self._full = False

    def _forget(self, watch: int) -> None:
        name = self._names.pop(watch, None)
        if name is not None and self._watches.get(name) == watch:
            del self._watches[name]

    def _run_full(self) -> None:
        if not self._full:
            self._full = self._overflow = True


def _events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at < len(data):
        watch, mask, _, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        yield watch, mask, data[at : at + length].rstrip(b"\0")
        at += length


def _too_many() -> TooMany:
    return TooMany(
        "this host can watch no more folders",
        limit="fs.inotify.max_user_instances and max_user_watches",
        retry_after_s=5,
    )
