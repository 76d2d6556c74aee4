"""An archive in a folder: one that several hosts mount, or just another disk. Written beside, synced, renamed.

Our own and not obstore's: that has no fsync, and what a record calls archived must outlive a power cut.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Final

from orchestrator.archive import Stored
from orchestrator.durable import sync_folder
from orchestrator.errors import ArchiveUnavailable, DiskFull, NotFound

_NEW: Final = ".new-"
_STALE: Final = timedelta(hours=1)  # since its last write
_PIECE_BYTES: Final = 1 << 20


class DiskArchive:
    """The port Archive in the folder `root`, which is made. `base`: the folder somebody else made or mounted, which
    has to be there: where a mount is not, an empty archive would be believed."""

    def __init__(self, base: Path, root: Path) -> None:
        self._base = base
        self._root = root

    def where(self) -> str:
        return f"the folder {self._root}"

    def put(self, name: str, chunks: Iterable[bytes]) -> None:
        path = self._path(name)
        new = path.parent / f"{_NEW}{secrets.token_hex(8)}"
        with self._errors(name):
            self._make(path.parent)
        try:
            with self._errors(name):
                file = new.open("xb", buffering=0)  # what is left in a buffer fails again when it is closed
            with file:
                for chunk in chunks:  # whose errors are its own
                    with self._errors(name):
                        _write(file, chunk)
                with self._errors(name):
                    os.fsync(file.fileno())
            with self._errors(name):
                new.rename(path)
                sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    def get(self, name: str) -> Generator[bytes, None, None]:
        with self._errors(name):
            file = self._path(name).open("rb")
        return self._read(file, name)

    def _read(self, file: BinaryIO, name: str) -> Generator[bytes, None, None]:
        with file:
            while True:
                with self._errors(name):
                    piece = file.read(_PIECE_BYTES)
                if not piece:
                    return
                yield piece

    def list(self, prefix: str) -> Iterator[Stored]:
        folder = self._root / prefix.rpartition("/")[0]
        with self._errors(prefix):
            self._check()
            paths = _below(folder)
            for path, found in paths:
                name = path.relative_to(self._root).as_posix()
                if name.startswith(prefix) and not path.name.startswith(_NEW):
                    yield Stored(name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def remove(self, name: str) -> None:
        path = self._path(name)
        with self._errors(name):
            self._check()
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # unless it was the last of its folder
            path.parent.rmdir()

    def tidy(self, now: datetime) -> None:
        with self._errors(""):
            self._check()
            for path, found in _below(self._root):
                if path.name.startswith(_NEW) and datetime.fromtimestamp(found.st_mtime, UTC) < now - _STALE:
                    path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert name and ".." not in name.split("/") and not name.startswith("/")  # names are ours
        return self._root / name

    def _check(self) -> None:
        if not self._base.is_dir():
            raise ArchiveUnavailable(
                f"the folder {self._base} is not there: is it mounted?", remedy="mount or make it", retry_after_s=30
            )

    def _make(self, folder: Path) -> None:
        self._check()
        missing = [one for one in (folder, *folder.parents) if not one.is_dir()]
        for one in reversed(missing):
            one.mkdir(mode=0o700, exist_ok=True)
            sync_folder(one.parent)

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise NotFound(f"{name} is not in the archive", kind="archive", id=name) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no space left for the archive in {self.where()}", where="archive") from error
            raise ArchiveUnavailable(f"the archive in {self.where()}: {error}", retry_after_s=30) from error


def _below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every file; what goes meanwhile is passed over."""
    waiting = [folder]
    while waiting:
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as found:
            for one in found:
                with contextlib.suppress(FileNotFoundError):
                    if one.is_dir(follow_symlinks=False):
                        waiting.append(Path(one.path))
                    else:
                        yield Path(one.path), one.stat(follow_symlinks=False)


def _write(file: FileIO, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]
