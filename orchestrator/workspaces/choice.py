"""Which store a host gets: `auto` weighed against what is there, and why. Changes nothing until it is opened.

What was begun in one store stays in it: slots as plain directories keep `auto` at directories, a pool keeps it at
btrfs, and what cannot be had any more is said by name rather than passed over, which would look like lost workspaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.errors import BadInput
from orchestrator.workspace import SnapshotStore
from orchestrator.workspaces import btrfs_calls, mounts, pool
from orchestrator.workspaces.btrfs import BtrfsStore
from orchestrator.workspaces.directory import DirectoryStore

LEAST_FREE_BYTES: Final = 4 * 1024**3  # below that `auto` makes no pool: half of it would be too small to work in


@dataclass(frozen=True, slots=True)
class Choice:
    """`root` holds `slots` and `snapshots`. `why`: for people. `pool` None: it is there already, or needs none."""

    kind: str
    root: Path
    why: str
    pool: pool.Pool | None = None

    @property
    def slots(self) -> Path:
        return self.root / "slots"

    def store(self) -> SnapshotStore:
        """It as it is now; a pool that is not mounted looks empty."""
        if self.kind == "directory":
            return DirectoryStore(self.slots)
        return BtrfsStore(self.root, below=self.pool.folder if self.pool else None)

    def open(self) -> SnapshotStore:
        """Ready for use. Blocking. Raises BadInput(field="workspace_store"), DiskFull."""
        if self.pool is not None:
            self.pool.open()
        return self.store()


def choose(
    wanted: str, data_dir: Path, *, label: str, btrfs_path: Path | None, size_bytes: int, allocate: bool
) -> Choice:
    """`wanted`: auto, btrfs or directory. Raises BadInput where that cannot be."""
    if wanted == "directory":
        return Choice("directory", data_dir, "workspace_store says so")
    is_root = os.geteuid() == 0
    if btrfs_path is not None:
        if not is_root:
            raise _not_btrfs("only root makes snapshots and limits on btrfs", "run as root")
        if not _is_btrfs(btrfs_path):
            raise _not_btrfs(f"btrfs_path {btrfs_path} is no folder on btrfs", "mount it, or correct btrfs_path")
        return Choice("btrfs", btrfs_path, "btrfs_path is set")
    own = pool.Pool(data_dir, label, size_bytes, allocate)
    chosen = Choice("btrfs", own.point, f"a pool in {own.file}", own)
    hindrance = _hindrance(own, is_root)
    if own.file.exists():
        if hindrance:
            raise _not_btrfs(
                f"the workspaces are in {own.file}, which cannot be used: {hindrance}",
                "mend that; workspace_store=directory begins anew, without them",
            )
        return chosen
    if wanted == "btrfs":
        if hindrance:
            raise _not_btrfs(hindrance, "mend that, or set workspace_store=directory or auto")
        return chosen
    if _has_slots(data_dir):
        hindrance = "workspaces are here as plain directories already (workspace_store=btrfs begins anew)"
    elif not hindrance and shutil.disk_usage(_there(data_dir)).free < LEAST_FREE_BYTES:
        hindrance = f"less than {LEAST_FREE_BYTES >> 30} GiB free for a pool"
    return Choice("directory", data_dir, f"no btrfs: {hindrance}") if hindrance else chosen


def _hindrance(own: pool.Pool, is_root: bool) -> str:
    """Why no pool can be had; "" = it can."""
    if not is_root:
        return "only root mounts one"
    if mounts.mounted(own.point) is not None:
        return ""
    if not _kernel_has_btrfs():
        return "the kernel has no btrfs"
    if not own.file.exists() and pool.find_mkfs() is None:
        return "mkfs.btrfs is not here (apt-get install btrfs-progs)"
    if not Path("/dev/loop-control").exists():
        return "there are no loop devices"
    if not mounts.engine_sees_ours():
        return (
            "this process has a mount namespace of its own (systemd's ProtectSystem, say), the container engine would "
            "not see a pool in it: mount a btrfs at boot and set btrfs_path"
        )
    return ""


def _kernel_has_btrfs() -> bool:
    if "btrfs" in Path("/proc/filesystems").read_text().split():
        return True
    program = shutil.which("modprobe") or shutil.which("modprobe", path="/usr/sbin:/sbin")
    return program is not None and subprocess.run([program, "-nq", "btrfs"], check=False).returncode == 0


def _is_btrfs(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        btrfs_calls.filesystem_uuid(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _has_slots(data_dir: Path) -> bool:
    return any((data_dir / "slots").glob("sbx_*")) or any((data_dir / "snapshots").glob("snp_*"))


def _there(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _not_btrfs(message: str, remedy: str) -> BadInput:
    return BadInput(message, field="workspace_store", limit="auto, btrfs or directory, as this host can", remedy=remedy)
