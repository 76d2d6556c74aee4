"""The only way into a workspace: names as people send them, checked; files looked up, read and written without leaving.

Whatever lies there is hostile and may change while we look. The root of every look-up is `vol`, which holds
`workspace` and `state` just as the sandbox sees them at `/workspace` and `/state`: an absolute link to `/workspace/x`
means the same to us as to a program inside. Links to anywhere else end inside `vol` and so find nothing; a link spelled
with the sandbox's inner path `/slot/vol/…` finds nothing either.

Knows no HTTP, and not whether a sandbox runs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from orchestrator.errors import BadInput, CarrelError, Conflict, NotFound
from orchestrator.workspace import HARNESS_UID, FileKind, FileStat
from orchestrator.workspaces import listing
from orchestrator.workspaces.durable import disk_errors
from orchestrator.workspaces.openat2 import open_inside

MAX_PATH_BYTES: Final = 4096  # PATH_MAX: programs inside cannot name more either
MAX_NAME_BYTES: Final = 255
UPLOAD_PREFIX: Final = ".carrel-upload-"
_PERMISSIONS: Final = 0o777  # no setuid, setgid or sticky bit comes in


def inside(path: str, *, field: str = "path") -> bytes:
    """The name below `vol` of a path relative to /workspace, or absolute under /workspace or /state. Raises
    BadInput."""
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise _bad(field, "holds a NUL byte", "no NUL bytes")
    if len(raw) > MAX_PATH_BYTES:
        raise _bad(field, f"has {len(raw)} bytes", f"<= {MAX_PATH_BYTES} bytes")
    if raw.startswith(b"/"):
        for prefix in (b"/workspace", b"/state"):
            if raw == prefix or raw.startswith(prefix + b"/"):
                raw = raw[1:]
                break
        else:
            raise _bad(field, "is outside the workspace", "relative, or under /workspace or /state")
    else:
        raw = b"workspace/" + raw
    names = [name for name in raw.split(b"/") if name not in (b"", b".")]
    if b".." in names:
        raise _bad(field, "holds '..'", "no '..'")
    if any(len(name) > MAX_NAME_BYTES for name in names):
        raise _bad(field, "has a name that is too long", f"names <= {MAX_NAME_BYTES} bytes")
    return b"/".join(names)


def outside(name: bytes) -> str:
    """What people see of a name below `vol`: relative to /workspace, or absolute."""
    if name == b"workspace":
        return ""
    return os.fsdecode(name.removeprefix(b"workspace/") if name.startswith(b"workspace/") else b"/" + name)


class RegularFile:
    """The port's OpenFile: content and stat are of one opened file, whatever its name means by now."""

    def __init__(self, descriptor: int, found: FileStat, etag: str) -> None:
        self._descriptor = descriptor
        self.stat = found
        self.etag = etag

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
        with self._root() as root, _looked_up(path):
            descriptor = open_inside(root, name, os.O_PATH | os.O_NOFOLLOW)
            try:
                return _file_stat(descriptor, name)
            finally:
                os.close(descriptor)

    def list(self, path: str, *, recursive: bool = False, after: str = "", limit: int = 1000) -> Sequence[FileStat]:
        name = inside(path)
        with self._root() as root:
            with _looked_up(path):
                folder = open_inside(root, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
            try:
                prefix = outside(name)
                prefix = prefix + "/" if prefix else ""
                begin = _begin_after(os.fsencode(after.removeprefix("/workspace/")), os.fsencode(prefix))
                if begin is None:
                    return []
                return [
                    found_stat(entry.stat, os.fsencode(prefix) + entry.name, entry.target)
                    for entry in listing.page(folder, after=begin, limit=limit, recursive=recursive)
                ]
            finally:
                os.close(folder)

    def open(self, path: str) -> RegularFile:
        name = inside(path)
        with self._root() as root, _looked_up(path):
            found = open_inside(root, name, os.O_PATH)
            try:
                kind = os.fstat(found).st_mode
                if stat.S_ISDIR(kind):
                    raise Conflict(f"{path} is a folder", state="directory", remedy="list it, or name a file in it")
                if not stat.S_ISREG(kind):
                    raise Conflict(f"{path} is no regular file", state="other", remedy="name a regular file")
                # The very inode that was looked at, by its descriptor: a device put in its place now is not opened.
                descriptor = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            finally:
                os.close(found)
        seen = os.fstat(descriptor)
        etag = f"{seen.st_ino:x}-{seen.st_size:x}-{seen.st_mtime_ns:x}"
        return RegularFile(descriptor, _file_stat(descriptor, name), etag)

    def write(self, path: str, chunks: Iterable[bytes], *, mode: int = 0o644, durable: bool = True) -> FileStat:
        """As the port says. `durable=False`: the caller syncs (many files laid in at once)."""
        if self._read_only:
            raise Conflict("a snapshot cannot be changed", state="snapshot", remedy="fork it, and write there")
        name = inside(path)
        folder_name, _, last = name.rpartition(b"/")
        if not folder_name:
            raise Conflict(f"{path or '/workspace'} is a folder", state="directory", remedy="name a file in it")
        with self._root() as root, _looked_up(path), disk_errors("workspace"):
            folder = _open_folder(root, folder_name)
            try:
                return self._write_in(folder, last, name, chunks, mode & _PERMISSIONS, durable)
            finally:
                os.close(folder)

    @staticmethod
    def _write_in(folder: int, last: bytes, name: bytes, chunks: Iterable[bytes], mode: int, durable: bool) -> FileStat:
        # A crash leaves this file to the workspace. Accepted: a name is needed to replace another in one step, and only
        # root's own scratch space could hide it, on another filesystem.
        temporary = UPLOAD_PREFIX + secrets.token_hex(8)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                give_to_harness(file.fileno())
                os.fchmod(file.fileno(), mode)
                if durable:
                    os.fsync(file.fileno())
                written = _file_stat(file.fileno(), name)
            os.rename(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
        if durable:
            os.fsync(folder)
        return written

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        try:
            root = os.open(self._vol, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise NotFound("the workspace is not here", kind="workspace", id="") from error
        try:
            yield root
        finally:
            os.close(root)


def give_to_harness(descriptor: int) -> None:
    """Root hands over; anybody else is the owner already and cannot."""
    if os.geteuid() == 0:
        os.fchown(descriptor, HARNESS_UID, HARNESS_UID)


def _begin_after(after: bytes, prefix: bytes) -> bytes | None:
    """Where a listing below `prefix` begins when all up to the path `after` has been seen; None = it is over."""
    if after.startswith(prefix):
        return after[len(prefix) :]
    return b"" if after < prefix else None


def _open_folder(root: int, name: bytes) -> int:
    """The folder `name` below `root`, made where it is missing."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
    try:
        return open_inside(root, name, flags)
    except FileNotFoundError:
        above, _, last = name.rpartition(b"/")
        if not above:
            raise
    parent = _open_folder(root, above)
    try:
        try:
            os.mkdir(last, 0o755, dir_fd=parent)
        except FileExistsError:
            return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)  # made meanwhile; or a dead link
        made = os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        give_to_harness(made)
        return made
    finally:
        os.close(parent)


@contextlib.contextmanager
def _looked_up(path: str) -> Iterator[None]:
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
            raise _bad("path", "is a link that leads out, or in a circle", "a path inside the workspace") from error
        if error.errno == errno.ENAMETOOLONG:
            raise _bad("path", "is too long", f"<= {MAX_PATH_BYTES} bytes") from error
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
    )


def _file_stat(descriptor: int, name: bytes) -> FileStat:
    found = os.fstat(descriptor)
    target = os.readlink(b"", dir_fd=descriptor) if stat.S_ISLNK(found.st_mode) else b""
    return found_stat(found, os.fsencode(outside(name)), target)


def _bad(field: str, what: str, limit: str) -> BadInput:
    return BadInput(f"the path {what}", field=field, limit=limit, remedy="name a file of the workspace")
