"""Where a backup goes: a file that has its name once it is whole and on disk, or a stream. Blocking.

Until then it is `.<name>.part-…` beside it, locked by its writer; what a crash left is removed by the next one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import sys
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from orchestrator.durable import sync_folder
from orchestrator.errors import BadInput, DiskFull


class Output:
    """`with Output(path) as file`: left without an error, it takes its name. "-" = stdout. Raises BadInput for a name
    that is taken (unless `replace`) or a folder that is not there; DiskFull."""

    def __init__(self, name: str, *, replace: bool = False) -> None:
        self._path = None if name == "-" else Path(name).absolute()
        self._replace = replace
        self._part: Path | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> BinaryIO:
        if self._path is None:
            self._file = sys.stdout.buffer
            return self._file
        if self._path.exists() and not self._replace:
            raise BadInput(f"{self._path} is there already", field="-o", remedy="choose another name, or --replace")
        if not self._path.parent.is_dir():
            raise BadInput(f"there is no folder {self._path.parent}", field="-o", remedy="make it first")
        _sweep(self._path)
        self._part = self._path.with_name(f"{_prefix(self._path)}{secrets.token_hex(4)}")
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self._file = os.fdopen(descriptor, "wb")
        return self._file

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                self._file.flush()
                if self._part is not None and self._path is not None:
                    os.fsync(self._file.fileno())
                    self._part.rename(self._path)
                    sync_folder(self._path.parent)
                    self._part = None
        except OSError as error:
            failure = error
            raise
        finally:
            if self._part is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._part.unlink(missing_ok=True)
            elif self._path is not None:
                self._file.close()
            if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no space left for the backup: {failure.strerror}", where="backup") from failure


def _prefix(path: Path) -> str:
    return f".{path.name}.part-"


def _sweep(path: Path) -> None:
    """Parts whose writer is gone."""
    for left in path.parent.glob(f"{_prefix(path)}*"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
