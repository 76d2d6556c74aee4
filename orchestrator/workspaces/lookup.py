"""Names as people send them, checked; and looking them up below `vol`, with the kernel's refusals as ours.

The root of every look-up is `vol`, which holds `workspace` and `state` just as the sandbox sees them at `/workspace`
and `/state`: an absolute link to `/workspace/x` means the same to us as to a program inside. Links to anywhere else end
inside `vol` and so find nothing; a link spelled with the sandbox's inner path `/slot/vol/…` finds nothing either.

Knows no operation on what is found.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from orchestrator.errors import BadInput, CarrelError, Conflict, NotFound
from orchestrator.workspace import HARNESS_UID, FileKind, FileStat
from orchestrator.workspaces.openat2 import open_inside

MAX_PATH_BYTES: Final = 4096  # PATH_MAX: programs inside cannot name more either
MAX_NAME_BYTES: Final = 255
PERMISSIONS: Final = 0o777  # no setuid, setgid or sticky bit comes in


def inside(path: str, *, field: str = "path") -> bytes:
    """The name below `vol` of a path relative to /workspace, or absolute under /workspace or /state. Raises
    BadInput."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise bad_path(field, "holds a NUL byte", "no NUL bytes")
    if len(raw) > MAX_PATH_BYTES:
        raise bad_path(field, f"has {len(raw)} bytes", f"<= {MAX_PATH_BYTES} bytes")
    if raw.startswith(b"/"):
        for prefix in (b"/workspace", b"/state"):
            if raw == prefix or raw.startswith(prefix + b"/"):
                raw = raw[1:]
                break
        else:
            raise bad_path(field, "is outside the workspace", "relative, or under /workspace or /state")
    else:
        raw = b"workspace/" + raw
    names = [name for name in raw.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise bad_path(field, "holds '..'", "no '..'")
    if any(len(name) > MAX_NAME_BYTES for name in names):
        raise bad_path(field, "has a name that is too long", f"names <= {MAX_NAME_BYTES} bytes")
    return b"/".join(names)


def outside(name: bytes) -> str:
    """What people see of a name below `vol`: relative to /workspace, or absolute."""
    if name == b"workspace":
        return ""
    return os.fsdecode(name.removeprefix(b"workspace/") if name.startswith(b"workspace/") else b"/" + name)


def give_to_harness(descriptor: int) -> None:
    """Root hands over; anybody else is the owner already and cannot."""
    if os.geteuid() == 0:
        os.fchown(descriptor, HARNESS_UID, HARNESS_UID)


def open_folder(root: int, name: bytes) -> int:
    """The folder `name` below `root`, made where it is missing. No recursion: a path may name 2,000 folders."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
    names = name.split(b"/")
    have = len(names)
    while True:
        try:
            here = open_changeable(root, b"/".join(names[:have]), flags)
            break
        except FileNotFoundError:
            have -= 1
            if not have:
                raise
    for missing in names[have:]:
        try:
            here, above = _made(here, missing, flags | os.O_NOFOLLOW | os.O_CLOEXEC), here
        except BaseException:
            os.close(here)
            raise
        os.close(above)
    return here


def open_changeable(root: int, name: bytes, flags: int) -> int:
    """The folder `name` below `root`, to change what is in it. Never `root` itself, where a link `../..` ends: what
    lies beside `workspace` and `state` is ours. Raises OSError."""
    folder = open_inside(root, name, flags)
    there, top = os.fstat(folder), os.fstat(root)
    if (there.st_dev, there.st_ino) == (top.st_dev, top.st_ino):
        os.close(folder)
        raise OSError(errno.EXDEV, "leaves the workspace")
    return folder


def _made(parent: int, name: bytes, flags: int) -> int:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return os.open(name, flags, dir_fd=parent)  # made meanwhile; or a dead link
    made = os.open(name, flags, dir_fd=parent)
    give_to_harness(made)
    return made


def open_regular(folder: int, name: bytes, *, links: bool = False) -> int:
    """A descriptor for reading of the regular file `name`. Raises OSError; Conflict for what is none, which is never
    opened."""
    found = open_inside(folder, name, os.O_PATH | (0 if links else os.O_NOFOLLOW), links=links)
    try:
        kind = os.fstat(found).st_mode
        shown = outside(name)
        if stat.S_ISDIR(kind):
            raise Conflict(f"{shown} is a folder", state="directory", remedy="list it, or name a file in it")
        if not stat.S_ISREG(kind):
            raise Conflict(f"{shown} is no regular file", state="other", remedy="name a regular file")
        # The very inode that was looked at, by its descriptor: a device put in its place now is not opened.
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)


@contextlib.contextmanager
def looked_up(path: str, field: str = "path") -> Iterator[None]:
    """The kernel's refusals as ours."""
    try:
        yield
    except CarrelError:
        raise
    except OSError as error:
        shown = path or "/workspace"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            if error.errno == errno.ENOTDIR:
                raise Conflict(f"{shown}: a file is where a folder is needed", state="file", remedy="") from error
            raise NotFound(f"no file {shown}", kind="file", id=path) from error
        if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST):
            raise Conflict(f"{shown} is a folder", state="directory", remedy="name a file in it") from error
        if error.errno in (errno.ELOOP, errno.EXDEV):
            raise bad_path(field, "is a link that leads out, or in a circle", "a path inside the workspace") from error
        if error.errno == errno.ENAMETOOLONG:
            raise bad_path(field, "is too long", f"<= {MAX_PATH_BYTES} bytes") from error
        if error.errno == errno.EROFS:
            raise Conflict(f"{shown} cannot be changed", state="read_only", remedy="fork it") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise Conflict(f"{shown} may not be opened: {error.strerror}", state="denied", remedy="") from error
        raise


def found_stat(found: os.stat_result, name: bytes, target: bytes) -> FileStat:
    """A port's FileStat; `name` as people see it."""
    kind: FileKind = "other"
    if stat.S_ISREG(found.st_mode):
        kind = "file"
    elif stat.S_ISDIR(found.st_mode):
        kind = "directory"
    elif stat.S_ISLNK(found.st_mode):
        kind = "symlink"
    # A hostile time stamp may lie beyond what a datetime holds (year 9999).
    seconds = min(max(found.st_mtime, 0.0), 253_402_300_799.0)
    return FileStat(
        path=os.fsdecode(name),
        kind=kind,
        size_bytes=found.st_size,
        mode=stat.S_IMODE(found.st_mode),
        modified_at=datetime.fromtimestamp(seconds, tz=UTC),
        target=os.fsdecode(target),
        etag=etag_of(found) if kind == "file" else "",
    )


def etag_of(found: os.stat_result) -> str:
    """Of a regular file: another one after every write that is not within the clock's tick."""
    return f"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"


def file_stat(descriptor: int, name: bytes) -> FileStat:
    """Of what is open; `name` is below `vol`."""
    found = os.fstat(descriptor)
    target = os.readlink(b"", dir_fd=descriptor) if stat.S_ISLNK(found.st_mode) else b""
    return found_stat(found, os.fsencode(outside(name)), target)


def bad_path(field: str, what: str, limit: str) -> BadInput:
    """What is wrong with a name."""
    return BadInput(f"the path {what}", field=field, limit=limit, remedy="name a file of the workspace")
