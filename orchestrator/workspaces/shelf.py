"""Artifacts on disk: `of/<execution>/{list,<sha256>…}`, whole from the moment the folder has its name.

The same bytes of several executions are one file with a name in each folder and one in `content/`; the kernel counts
the names. A folder is built beside, locked while its builder lives, and renamed. Knows nothing of records, nor when
something may go.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from orchestrator.durable import disk_errors, locked, sync_filesystem, sync_folder, try_lock
from orchestrator.errors import CarrelError, Conflict, DiskFull, NotFound
from orchestrator.execution import GIB
from orchestrator.room import Mark
from orchestrator.shelf import MOST, NAMED_BYTES, Kept
from orchestrator.workspace import Files, FileStat, OpenFile
from orchestrator.workspaces import carrying, taking
from orchestrator.workspaces.paths import RegularFile
from orchestrator.workspaces.removal import remove_tree
from orchestrator.workspaces.shelf_list import read_list, write_list
from orchestrator.workspaces.shelf_names import append_names, read_names

logger = logging.getLogger(__name__)

_LIST: Final = "list"
_NAMED: Final = "named"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_NEW: Final = ".new-"
_GONE: Final = ".gone-"
_KINDS: Final = {"other": "it is a device, a socket or a FIFO", "directory": "it is a folder"}
_EACH_SYNCED: Final = 32  # files; more are waited for together
_RESERVE_BYTES: Final = 1 * GIB  # left to everything else on the disk; of a small one a twentieth
_MEASURED_FOR_S: Final = 30.0
_VERIFIED: Final = 10_000  # files of which this process remembers that it has read them
_READ_BYTES: Final = 1 << 20


class DirectoryShelf:
    """The port `Shelf` on the folder `root`, which several processes may share. `execution_limit_bytes`: of one
    execution, `limit_bytes`: of all together (0 = as much as the disk has, but for a reserve). `low`: the mark below
    which nothing new begins here: artifacts never bring the disk there."""

    def __init__(
        self, root: Path, *, execution_limit_bytes: int = 4 * GIB, limit_bytes: int = 0, low: Mark | None = None
    ) -> None:
        self._root = root
        self._of = root / "of"
        self._content = root / "content"
        self._named = root / "named"
        self._execution_limit_bytes = execution_limit_bytes
        self._limit_bytes = limit_bytes
        self._low = low or Mark()
        self._measured: tuple[float, int] = (0.0, 0)  # until when it holds, bytes
        self._verified: set[tuple[int, int, int]] = set()

    async def name(self, execution_id: str, paths: Sequence[str]) -> None:
        await asyncio.to_thread(self._name, execution_id, paths)

    async def named(self, execution_id: str) -> Sequence[str]:
        return await asyncio.to_thread(self._names, execution_id)

    async def keep(self, execution_id: str, files: Files) -> Sequence[Kept]:
        return await asyncio.to_thread(self._keep, execution_id, files)

    async def kept(self, execution_id: str) -> Sequence[Kept]:
        return await asyncio.to_thread(self._kept, execution_id)

    async def open(self, execution_id: str, one: Kept) -> OpenFile:
        return await asyncio.to_thread(self._open, execution_id, one)

    async def remove(self, execution_id: str) -> int:
        return await asyncio.to_thread(self._remove, execution_id)

    def pack(self, execution_id: str) -> Generator[tuple[str, bytes]]:
        named = self._names(execution_id)
        while True:
            with disk_errors("artifacts"), self._beside(execution_id) as new:
                if not carrying.hold(self._of / execution_id, new):
                    continue
                if named:
                    append_names(new / _NAMED, named)
                if not any(new.iterdir()):
                    raise NotFound("nothing is held of it", kind="artifacts", id=execution_id)
                yield from carrying.pieces(new)
                return

    async def load(self, execution_id: str, pieces: Iterator[tuple[str, bytes]]) -> None:
        await asyncio.to_thread(self._load, execution_id, pieces)

    async def list(self) -> Sequence[tuple[str, datetime]]:
        return await asyncio.to_thread(self._list)

    # -- in a thread: names -------------------------------------------------------------------------------------------

    def _name(self, execution_id: str, paths: Sequence[str]) -> None:
        known = self._names(execution_id)
        room = MOST - len(known)
        new = [path for path in dict.fromkeys(paths) if path not in known and len(os.fsencode(path)) <= NAMED_BYTES]
        if not new[:room]:
            return
        self._named.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._named / _checked(execution_id)
        with disk_errors("artifacts"):
            append_names(file, new[:room])
        sync_folder(self._named)

    def _names(self, execution_id: str) -> Sequence[str]:
        return read_names(self._named / _checked(execution_id))

    # -- in a thread: keeping -----------------------------------------------------------------------------------------

    def _keep(self, execution_id: str, files: Files) -> Sequence[Kept]:
        place = self._of / _checked(execution_id)
        looked_at = taking.found(files, self._names(execution_id))
        first = next(looked_at, None)
        if first is None:
            self._take_away(place)
            return ()
        with disk_errors("artifacts"):
            self._of.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._content.mkdir(mode=0o700, exist_ok=True)
            with self._beside(execution_id) as new:
                kept = self._fill(new, _and(first, looked_at), files)
                write_list(new / _LIST, kept)
                if len(kept) > _EACH_SYNCED:
                    sync_filesystem(new)
                sync_folder(new)
                self._take_away(place)
                try:
                    new.rename(place)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another owner was faster
                        raise
            sync_folder(self._of)
        return kept

    def _load(self, execution_id: str, pieces: Iterator[tuple[str, bytes]]) -> None:
        place = self._of / _checked(execution_id)
        with disk_errors("artifacts"), self._beside(execution_id) as new:
            named: Sequence[str] = ()
            for name, copy, sha256 in carrying.put(pieces, new):
                if name == _NAMED:
                    named = read_names(copy)
                    copy.unlink()
                elif name == sha256:
                    self._settle(copy, new / name)
                    copy.unlink(missing_ok=True)
                elif name == _LIST or _DIGEST.fullmatch(name):  # damaged already: nobody shares it, `open` says so
                    copy.rename(new / name)
                else:
                    raise Conflict(f"{name!r} is nothing of a shelf", state="corrupt", remedy="use another backup")
            sync_folder(new)
            self._name(execution_id, named)
            self._take_away(place)
            if (new / _LIST).exists():
                new.rename(place)
            sync_folder(self._of)

    def _fill(
        self, new: Path, looked_at: Iterator[tuple[str, str, FileStat | CarrelError]], files: Files
    ) -> Sequence[Kept]:
        kept: builtins.list[Kept] = []
        left_bytes = min(self._execution_limit_bytes, self._room())
        for place, path, seen in looked_at:
            if isinstance(seen, CarrelError):
                kept.append(Kept(place, 0, datetime.fromtimestamp(0, tz=UTC), refused=seen.message))
                continue
            if len(kept) >= MOST:
                why = f"only {MOST} are kept, and there are more"
                kept.append(Kept(place, seen.size_bytes, seen.modified_at, refused=why))
                break
            kept.append(one := self._one(new, place, path, seen, files, left_bytes, len(kept)))
            if one.sha256:
                left_bytes -= one.size_bytes
        return kept

    def _one(
        self, new: Path, place: str, path: str, seen: FileStat, files: Files, left_bytes: int, number: int
    ) -> Kept:
        def refused(why: str) -> Kept:
            logger.warning("an artifact is not kept", extra={"path": place, "why": why})
            return Kept(place, seen.size_bytes, seen.modified_at, refused=why)

        if why := _KINDS.get(seen.kind):
            return refused(why)
        copy = new / f".copy-{number}"
        try:
            sha256, stat = taking.take(files, path, copy, left_bytes)
            if number < _EACH_SYNCED:
                _sync(copy)
            self._settle(copy, new / sha256)
        except (NotFound, DiskFull) as error:
            return refused("it leads nowhere inside the workspace" if seen.kind == "symlink" else error.message)
        except CarrelError as error:
            return refused(error.message)
        except OSError as error:
            return refused(error.strerror or type(error).__name__)
        finally:
            copy.unlink(missing_ok=True)
        return Kept(place, stat.size_bytes, stat.modified_at, sha256)

    def _settle(self, copy: Path, mine: Path) -> None:
        """The copy under its digest: another name of the same bytes where they are here."""
        common = self._content / mine.name[:2] / mine.name
        common.parent.mkdir(mode=0o700, exist_ok=True)
        self._trust(copy.stat())  # just written; what else it is a name of is read first
        sound = self._is_sound(common)
        with locked(self._content):
            try:
                if not sound or not common.exists():
                    common.unlink(missing_ok=True)  # what is damaged is nobody's to share
                    os.link(copy, common)
                    until, used_bytes = self._measured
                    self._measured = (until, used_bytes + copy.stat().st_blocks * 512)
                os.link(common, mine)
            except FileExistsError:
                return  # twice in one workspace
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                copy.rename(mine)  # so many share it that the filesystem counts no further

    def _room(self) -> int:
        """Bytes that may come."""
        disk = shutil.disk_usage(self._root)
        room = disk.free - max(min(_RESERVE_BYTES, disk.total // 20), self._low.least_bytes(disk.total))
        if self._limit_bytes:
            room = min(room, self._limit_bytes - self._used())
        return max(0, room)

    def _used(self) -> int:
        now = time.monotonic()
        until, used_bytes = self._measured
        if now >= until:
            used_bytes = sum(file.stat().st_blocks * 512 for file in self._content.glob("??/*"))
            self._measured = (now + _MEASURED_FOR_S, used_bytes)
        return used_bytes

    @contextlib.contextmanager
    def _beside(self, execution_id: str) -> Iterator[Path]:
        self._of.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._content.mkdir(mode=0o700, exist_ok=True)
        while True:
            new = self._of / f"{_NEW}{execution_id}-{secrets.token_hex(4)}"
            new.mkdir(mode=0o700)
            lock = try_lock(new)
            if lock is not None and new.exists():  # else a look round took it for abandoned, just now
                break
            if lock is not None:
                os.close(lock)
        try:
            yield new
        finally:
            self._drop(new)
            os.close(lock)

    # -- in a thread: looking -----------------------------------------------------------------------------------------

    def _kept(self, execution_id: str) -> Sequence[Kept]:
        try:
            return read_list(self._of / _checked(execution_id) / _LIST)
        except FileNotFoundError:
            raise NotFound("nothing was kept of it", kind="artifacts", id=execution_id) from None
        except (ValueError, KeyError, TypeError):
            raise Conflict(
                f"the list of artifacts of {execution_id} is damaged", state="corrupt", remedy="use its workspace"
            ) from None

    def _open(self, execution_id: str, one: Kept) -> OpenFile:
        file = self._of / _checked(execution_id) / one.sha256
        if not _DIGEST.fullmatch(one.sha256) or not file.is_file():
            raise NotFound(one.refused or "its bytes are not there", kind="artifact", id=one.path)
        if not self._is_sound(file):
            raise Conflict(
                f"what was kept as {one.path} is not any more what it was", state="corrupt", remedy="use its workspace"
            )
        stat = FileStat(one.path, "file", one.size_bytes, 0o644, one.modified_at, etag=one.sha256)
        return RegularFile(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), stat)

    def _is_sound(self, file: Path) -> bool:
        """Are these the bytes of its name. Read once in this process, and again when the file was changed."""
        try:
            with file.open("rb") as content:
                found = os.fstat(content.fileno())
                if _key(found) in self._verified:
                    return True
                digest = hashlib.file_digest(content, "sha256").hexdigest()
        except FileNotFoundError:
            return False
        if digest != file.name:
            logger.error("artifact bytes are damaged", extra={"sha256": file.name})
            return False
        self._trust(found)
        return True

    def _trust(self, found: os.stat_result) -> None:
        if len(self._verified) >= _VERIFIED:
            self._verified.clear()
        self._verified.add(_key(found))

    # -- in a thread: removing ----------------------------------------------------------------------------------------

    def _list(self) -> Sequence[tuple[str, datetime]]:
        found: dict[str, datetime] = {}
        for folder in (self._of, self._named):
            if not folder.is_dir():
                continue
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if path.name.startswith(_GONE):
                        self._drop(path)
                    elif path.name.startswith(_NEW):
                        self._abandoned(path)
                    else:
                        at = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
                        found[path.name] = max(at, found.get(path.name, at))
        return sorted(found.items())

    def _abandoned(self, path: Path) -> None:
        lock = try_lock(path)
        if lock is not None:
            try:
                self._drop(path)
            finally:
                os.close(lock)

    def _remove(self, execution_id: str) -> int:
        freed_bytes = self._take_away(self._of / _checked(execution_id))
        (self._named / execution_id).unlink(missing_ok=True)
        return freed_bytes

    def _take_away(self, place: Path) -> int:
        gone = place.with_name(f"{_GONE}{place.name}-{secrets.token_hex(4)}")
        try:
            place.rename(gone)
        except FileNotFoundError:
            return 0
        return self._drop(gone)

    def _drop(self, folder: Path) -> int:
        """A folder of ours that nobody names, and the content it was the last one to share. A crash in between leaves
        a smaller one of the same kind."""
        freed_bytes = 0
        if not folder.is_dir():
            return 0
        with locked(self._content):
            for mine in folder.iterdir():
                common = self._content / mine.name[:2] / mine.name
                with contextlib.suppress(FileNotFoundError):
                    found = mine.stat()
                    if found.st_nlink == 2 and common.exists():
                        common.unlink()
                    if found.st_nlink <= 2:
                        freed_bytes += found.st_blocks * 512
                    mine.unlink()
            until, used_bytes = self._measured
            self._measured = (until, max(0, used_bytes - freed_bytes))
        remove_tree(folder)
        return freed_bytes


def _key(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def _checked(execution_id: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,127}", execution_id):
        raise NotFound(f"{execution_id!r} is no execution's id", kind="execution", id=execution_id)
    return execution_id


def _and(
    first: tuple[str, str, FileStat | CarrelError], rest: Iterator[tuple[str, str, FileStat | CarrelError]]
) -> Iterator[tuple[str, str, FileStat | CarrelError]]:
    yield first
    yield from rest


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
