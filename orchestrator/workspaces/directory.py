"""Workspaces as plain directories, on any filesystem: `<data>/slots` and `<data>/snapshots`. Nothing bounds their size.

A snapshot is a copy, file by file: it shares the data with the workspace where the filesystem can (XFS, btrfs), else it
takes as long as its bytes take, and the sandbox is frozen meanwhile. How big a workspace is, is measured: whoever owns
the execution asks `disk` and stops it at its limit (`limit` is refused here: the kernel would not hold it).
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from orchestrator.errors import Infeasible
from orchestrator.workspace import DiskUse, StoreFacts
from orchestrator.workspaces.copying import copy_tree
from orchestrator.workspaces.measuring import room
from orchestrator.workspaces.removal import remove_tree
from orchestrator.workspaces.store import VolumeStore

log = logging.getLogger(__name__)

MEASURED_FOR_S: Final = 5.0  # and at least ten times as long as measuring took: it may not become all that happens


class DirectoryStore(VolumeStore):
    """The port `SnapshotStore` on the folder `slots`, and `snapshots` (beside it) on the same filesystem; several
    processes may share them."""

    def __init__(self, slots: Path, snapshots: Path | None = None) -> None:
        super().__init__(slots, snapshots or slots.parent / "snapshots", Folders())


class Folders:
    """The seam Volumes with folders."""

    def __init__(self) -> None:
        self._measured: dict[Path, tuple[float, DiskUse]] = {}  # until when it holds

    def facts(self, at: Path) -> StoreFacts:
        found = os.statvfs(at)
        return StoreFacts(
            "directory",
            limits_disk=False,
            instant=False,
            free_bytes=found.f_bavail * found.f_frsize,
            total_bytes=found.f_blocks * found.f_frsize,
        )

    def make(self, path: Path, disk_bytes: int) -> None:
        self.limit(path, disk_bytes)
        path.mkdir()

    def keep(self, volume: Path, path: Path) -> None:
        self._copy(volume, path)

    def settle(self, volume: Path, path: Path) -> None:
        volume.rename(path)

    def begin(self, kept: Path, path: Path, disk_bytes: int) -> None:
        self.limit(path, disk_bytes)
        self._copy(kept, path)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        done = copy_tree(source, target, target.with_name(f"{target.name}.links"))
        log.log(
            logging.WARNING if done.changed else logging.DEBUG,
            "copied a workspace",
            extra={"target": str(target), **asdict(done)},
        )

    def limit(self, volume: Path, disk_bytes: int) -> None:
        if disk_bytes:
            raise Infeasible(
                "workspaces of this installation are plain directories: the kernel does not limit their size",
                field="disk_bytes",
                limit="0",
            )

    def use(self, volume: Path) -> DiskUse:
        now = time.monotonic()
        until, seen = self._measured.get(volume, (0.0, DiskUse(0)))
        if now < until:
            return seen
        used_bytes, files = room(volume)
        took_s = time.monotonic() - now
        if len(self._measured) > 10_000:  # of sandboxes long gone
            self._measured.clear()
        seen = DiskUse(used_bytes, files=files)
        self._measured[volume] = (now + took_s + max(MEASURED_FOR_S, 10 * took_s), seen)
        return seen

    def remove(self, path: Path) -> bool:
        self._measured.pop(path, None)
        return remove_tree(path)

    def tend(self, at: Path) -> None:
        """Nothing here goes wrong by itself."""
