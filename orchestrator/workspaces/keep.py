"""The life of kept volumes: `snapshots/<snapshot>/vol`, immutable, whole from the moment it has its name.

It is built in a folder beside, which is locked as long as its builder lives, and renamed; what a crash leaves has no
lock and goes at the next look. All of it blocks. Knows nothing of sandboxes or records.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from orchestrator.durable import disk_errors, sync_folder, try_lock
from orchestrator.errors import Conflict, NotFound
from orchestrator.workspaces.slots import whole
from orchestrator.workspaces.volumes import Volumes

_NEW: Final = ".new-"
_GONE: Final = ".gone-"
_SNAPSHOT: Final = "snp_"


class Keep:
    """Below the folder `root`, which several processes may share."""

    def __init__(self, root: Path, volumes: Volumes) -> None:
        self._root = root
        self._volumes = volumes

    def volume(self, snapshot_id: str) -> Path:
        """Raises NotFound."""
        volume = self._path(snapshot_id) / "vol"
        if not whole(volume):
            raise NotFound(f"snapshot {snapshot_id} is not on this host", kind="snapshot", id=snapshot_id)
        return volume

    def made_ns(self, snapshot_id: str) -> int:
        """When it was begun to be made. Raises NotFound."""
        return self.volume(snapshot_id).parent.stat().st_ctime_ns

    def take(self, snapshot_id: str, build: Callable[[Path], None], wanted: Callable[[], bool] = lambda: True) -> None:
        """`build` makes the volume at the path it is given, whole on disk. There already is fine. `wanted`: asked when
        that is done. Raises Conflict where it says no: nothing is kept."""
        path = self._path(snapshot_id)
        with disk_errors("snapshot"):
            if whole(path / "vol"):
                return
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._beside(path) as new:
                build(new / "vol")
                sync_folder(new)
                if not wanted():
                    raise Conflict(f"{snapshot_id} is not wanted any more", state="unwanted", remedy="take another one")
                try:
                    new.rename(path)
                except OSError:
                    if not whole(path / "vol"):  # else another one of its execution's was faster
                        raise
            sync_folder(self._root)

    def drop(self, snapshot_id: str) -> None:
        path = self._path(snapshot_id)
        gone = self._root / f"{_GONE}{path.name}-{secrets.token_hex(4)}"
        try:
            path.rename(gone)
        except FileNotFoundError:
            return
        self._volumes.remove(gone)

    def list(self) -> Sequence[tuple[str, datetime]]:
        """Of all here; what crashes left is removed."""
        found: list[tuple[str, datetime]] = []
        if not self._root.is_dir():
            return found
        for path in self._root.iterdir():
            if path.name.startswith(_GONE):
                self._volumes.remove(path)
            elif path.name.startswith(_NEW):
                self._abandoned(path)
            elif path.name.startswith(_SNAPSHOT):
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.name, datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)))
        return sorted(found)

    def _path(self, snapshot_id: str) -> Path:
        if not re.fullmatch(r"snp_[a-zA-Z0-9_-]{1,60}", snapshot_id):
            raise NotFound(f"{snapshot_id!r} is no snapshot's id", kind="snapshot", id=snapshot_id)
        return self._root / snapshot_id

    @contextlib.contextmanager
    def _beside(self, path: Path) -> Iterator[Path]:
        new, lock = self._locked(path)
        try:
            yield new
        finally:
            if new.exists():
                self._volumes.remove(new)
            os.close(lock)

    def _locked(self, path: Path) -> tuple[Path, int]:
        while True:
            new = self._root / f"{_NEW}{path.name}-{secrets.token_hex(4)}"
            new.mkdir(mode=0o700)
            lock = try_lock(new)
            if lock is not None and new.exists():  # else a look round took it for abandoned, just now
                return new, lock
            if lock is not None:
                os.close(lock)

    def _abandoned(self, path: Path) -> None:
        lock = try_lock(path)
        if lock is None:
            return
        try:
            gone = path.with_name(f"{_GONE}{path.name.removeprefix(_NEW)}")
            with contextlib.suppress(FileNotFoundError):
                path.rename(gone)
                self._volumes.remove(gone)
        finally:
            os.close(lock)
