"""Workspaces as btrfs subvolumes: a snapshot or fork takes milliseconds whatever its size, the kernel limits the disk.

A `vol` is a subvolume, a snapshot of it a read-only one, what begins from that a writable one; a limit is that of its
quota group, of all it refers to, shared or not: what `du` says inside. At the limit writers get EDQUOT. Needs root.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.durable import sync_folder
from orchestrator.errors import Conflict, Infeasible
from orchestrator.workspace import DiskUse, StoreFacts
from orchestrator.workspaces import btrfs_calls, measuring, pool
from orchestrator.workspaces.removal import remove_tree
from orchestrator.workspaces.store import VolumeStore

log = logging.getLogger(__name__)


class BtrfsStore(VolumeStore):
    """The port `SnapshotStore` in the folder `root` of a btrfs; several processes may share it. `below`: where the
    file lies that holds this btrfs, if one does: when that disk is full, so is this."""

    def __init__(self, root: Path, *, below: Path | None = None) -> None:
        super().__init__(root / "slots", root / "snapshots", Subvolumes(below))


class Subvolumes:
    """The seam Volumes with subvolumes."""

    def __init__(self, below: Path | None = None) -> None:
        self._below = below

    def facts(self, at: Path) -> StoreFacts:
        found = os.statvfs(at)
        free_bytes = found.f_bavail * found.f_frsize
        if self._below is not None:
            free_bytes = min(free_bytes, shutil.disk_usage(self._below).free)
        return StoreFacts(
            "btrfs",
            limits_disk=True,
            instant=True,
            free_bytes=free_bytes,
            total_bytes=found.f_blocks * found.f_frsize,
        )

    def make(self, path: Path, disk_bytes: int) -> None:
        with _opened(path.parent) as folder:
            btrfs_calls.create_subvolume(folder, path.name)
        if disk_bytes:
            self.limit(path, disk_bytes)

    def keep(self, volume: Path, path: Path) -> None:
        with _opened(volume) as source, _opened(path.parent) as folder:
            if any(True for _ in btrfs_calls.children(source, btrfs_calls.subvolume_id(source))):
                raise Conflict(
                    "the workspace holds other subvolumes: a snapshot would hold them empty",
                    state="nested",
                    remedy="remove them (btrfs subvolume delete)",
                )
            # The kernel writes out what the source has in memory, and returns when the snapshot is committed.
            btrfs_calls.snapshot(source, folder, path.name, read_only=True)

    def settle(self, volume: Path, path: Path) -> None:
        volume.rename(path)
        with _opened(path) as kept:
            btrfs_calls.set_read_only(kept, True)  # commits

    def begin(self, kept: Path, path: Path, disk_bytes: int) -> None:
        if disk_bytes and (used_bytes := self.use(kept).used_bytes) > disk_bytes:
            raise Infeasible(
                f"the snapshot holds {used_bytes} bytes: more than the limit of {disk_bytes}",
                field="disk_bytes",
                limit=f">= {used_bytes}",
            )
        with _opened(kept) as source, _opened(path.parent) as folder:
            btrfs_calls.snapshot(source, folder, path.name, read_only=False)
        if disk_bytes:
            self.limit(path, disk_bytes)

    def limit(self, volume: Path, disk_bytes: int) -> None:
        with _opened(volume) as here:
            if not disk_bytes and not _groups(here).is_dir():
                return
            pool.count(here)
            btrfs_calls.limit(here, btrfs_calls.subvolume_id(here), disk_bytes)

    def use(self, volume: Path) -> DiskUse:
        with _opened(volume) as here:
            group = _groups(here) / f"0_{btrfs_calls.subvolume_id(here)}"
        try:
            # Written but not committed yet (up to 30 s) is reserved.
            reserved_bytes = _figure(group / "rsv_data")
            used_bytes = _figure(group / "referenced") + reserved_bytes
            alone_bytes = _figure(group / "exclusive") + reserved_bytes
            limited = _figure(group / "limit_flags") & 1
            most = _figure(group / "max_referenced")
        except FileNotFoundError:  # nobody counts here: a btrfs of others, on which no limit was set yet
            used_bytes, files = measuring.room(volume)
            return DiskUse(used_bytes, files=files)
        return DiskUse(used_bytes, limit_bytes=most if limited and most < 2**63 else 0, alone_bytes=alone_bytes)

    def remove(self, path: Path) -> bool:
        try:
            if btrfs_calls.is_subvolume(path):
                _destroy(path)
                return True
            with os.scandir(path) as entries:
                within = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return True
        except OSError as error:
            log.warning("could not remove %s: %s", path, error)
            return False
        # A volume lies nowhere else than directly in a folder of ours.
        done = [self.remove(one) for one in within if btrfs_calls.is_subvolume(one)]
        return all(done) and remove_tree(path)

    def tend(self, at: Path) -> None:
        """Count again where the kernel gave up counting: limits hold only where it knows."""
        with contextlib.suppress(OSError), _opened(at) as here:
            if _figure(_groups(here) / "inconsistent"):
                log.warning("the quota groups are counted again", extra={"pool": str(at)})
                btrfs_calls.count_again(here)


def _destroy(path: Path) -> None:
    with _opened(path.parent) as folder:
        try:
            btrfs_calls.destroy(folder, path.name)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            with _opened(path) as here:
                top = btrfs_calls.subvolume_id(here)
            for inner in _below(folder, top):
                btrfs_calls.destroy_by_id(folder, inner)
            btrfs_calls.destroy(folder, path.name)
    sync_folder(path.parent)


def _below(anywhere: int, top: int) -> Iterator[int]:
    """Every subvolume in this one, the innermost first."""
    found = [top]
    for subvolume in found:  # grows meanwhile
        found += btrfs_calls.children(anywhere, subvolume)
    yield from reversed(found[1:])


def _groups(descriptor: int) -> Path:
    return btrfs_calls.groups(btrfs_calls.filesystem_uuid(descriptor))


def _figure(path: Path) -> int:
    return int(path.read_text())


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
