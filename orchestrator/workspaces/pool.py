"""The pool: a btrfs of our own in one file of the data directory, made, mounted, grown and checked here.

`carrel-pool.btrfs` is sparse, so it takes what is in it (and gives back what is freed), unless it is allocated whole;
it is attached to a loop device and mounted at `pool`. It stays mounted when we end, since sandboxes outlive us;
after a reboot it is mounted again by whoever comes first. Processes of one host take turns by a lock. Needs root.
Knows nothing of workspaces.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.durable import disk_errors, sync_folder
from orchestrator.errors import BadInput
from orchestrator.workspaces import btrfs_calls, loop_device, mounts

log = logging.getLogger(__name__)

FILE: Final = "carrel-pool.btrfs"
POINT: Final = "pool"
LEAST_BYTES: Final = 256 * 1024 * 1024
_LOCK: Final = "pool.lock"
_DAMAGED: Final = frozenset({errno.EIO, errno.EINVAL, errno.EUCLEAN, errno.EBADMSG})
_NEVER: Final = "8"  # levels of a tree: no tree is higher


@dataclass(frozen=True, slots=True)
class Pool:
    """Of the data directory `folder`. `size_bytes`: 0 = half of what is free when it is made; it grows to a larger one,
    and never shrinks. `allocate`: take all of it from the disk at once."""

    folder: Path
    label: str
    size_bytes: int = 0
    allocate: bool = False

    @property
    def point(self) -> Path:
        return self.folder / POINT

    @property
    def file(self) -> Path:
        return self.folder / FILE

    def open(self) -> Path:
        """Have it mounted, and where. Blocking (making one takes a second). Raises BadInput(field="workspace_store")
        for one that cannot be had, or is damaged; DiskFull."""
        with self._turn(), disk_errors("pool"):
            there = mounts.mounted(self.point)
            if there is not None and there.read_only:
                there = self._revive()
            if there is None:
                if not self.file.exists():
                    self._make()
                self._mount()
            self._grow()
            descriptor = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                count(descriptor)
            finally:
                os.close(descriptor)
        return self.point

    def close(self) -> None:
        """Unmount it; its loop device goes with that. Raises OSError: EBUSY while anything uses it."""
        with self._turn():
            if mounts.mounted(self.point) is not None:
                mounts.unmount(self.point)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _make(self) -> None:
        program = find_mkfs()
        if program is None:
            raise _unusable("mkfs.btrfs is not here", "install btrfs-progs, or set workspace_store=directory")
        free_bytes = shutil.disk_usage(self.folder).free
        size_bytes = self.size_bytes or max(free_bytes // 2, LEAST_BYTES)
        new = self.file.with_name(f"{FILE}.new")  # whole from the moment it has its name
        try:
            with new.open("wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.truncate(size_bytes)
                if self.allocate:
                    os.posix_fallocate(file.fileno(), 0, size_bytes)
            # -K: no discard, which would give back what was allocated.
            command = [program, "-q", "-K", "-L", self.label, str(new)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = done.stderr.strip().splitlines()
                raise _unusable(f"mkfs.btrfs: {said[-1] if said else done.returncode}", "set workspace_store=directory")
            with new.open("rb") as file:
                os.fsync(file.fileno())
            new.rename(self.file)
        finally:
            new.unlink(missing_ok=True)
        sync_folder(self.folder)
        log.info("made a pool", extra={"file": str(self.file), "size_bytes": size_bytes})

    def _mount(self) -> None:
        self.point.mkdir(mode=0o700, exist_ok=True)
        if self.file.stat().st_size < self.size_bytes:
            self._lengthen()
        held, device = loop_device.attach(self.file)
        try:
            flags = mounts.NOSUID | mounts.NODEV | mounts.NOATIME
            options = "nodiscard" if self.allocate else "discard=async"
            try:
                mounts.mount(device, self.point, "btrfs", flags=flags, options=options)
            except OSError as error:
                if error.errno not in _DAMAGED:
                    raise _unusable(f"{self.file} cannot be mounted: {error}", "see the kernel's log") from error
                log.warning("the pool cannot be mounted as it is: %s; trying an older root of it", error)
                self._mount_older(device, flags, options)
        finally:
            os.close(held)
        self.point.chmod(0o700)

    def _mount_older(self, device: Path, flags: int, options: str) -> None:
        try:
            mounts.mount(device, self.point, "btrfs", flags=flags, options=f"{options},rescue=usebackuproot")
        except OSError as error:
            raise _unusable(
                f"{self.file} is damaged: {error}",
                f"`btrfs check {self.file}` says more, `btrfs restore` gets files out; moved away, a new one is made",
            ) from error

    def _revive(self) -> mounts.Mount | None:
        """One that the kernel took the writing from (the disk below was full, say): mounted anew, nothing is lost that
        was on disk."""
        log.warning("the pool is read-only; mounting it anew", extra={"pool": str(self.point)})
        with contextlib.suppress(OSError):
            mounts.unmount(self.point)
        if mounts.mounted(self.point) is None:
            self._mount()
        there = mounts.mounted(self.point)
        if there is None or there.read_only:
            raise _unusable(
                f"{self.point} is read-only (was the disk full?) and in use",
                f"make room, end what uses it (`make clean`), `umount {self.point}`, then start again",
            )
        return there

    def _lengthen(self) -> None:
        with self.file.open("rb+") as file:
            if self.allocate:
                os.posix_fallocate(file.fileno(), 0, self.size_bytes)
            file.truncate(self.size_bytes)
            os.fsync(file.fileno())

    def _grow(self) -> None:
        if self.file.stat().st_size < self.size_bytes:
            self._lengthen()
        device = loop_device.attached(self.file)
        if device is not None:
            loop_device.fit(device)
        descriptor = os.open(self.point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            btrfs_calls.grow(descriptor)
        finally:
            os.close(descriptor)


def count(descriptor: int) -> None:
    """Have the quota groups of a btrfs counted, from now on and for good."""
    uuid = btrfs_calls.filesystem_uuid(descriptor)
    groups = btrfs_calls.groups(uuid)
    if not groups.is_dir():
        btrfs_calls.enable_quota(descriptor)
    # Else the kernel gives up counting when a large subvolume goes, and all is to be counted again.
    with contextlib.suppress(OSError):  # older than 6.1: it always counts
        (groups / "drop_subtree_threshold").write_text(_NEVER)


def find_mkfs() -> str | None:
    return shutil.which("mkfs.btrfs") or shutil.which("mkfs.btrfs", path="/usr/sbin:/sbin")


def _unusable(message: str, remedy: str) -> BadInput:
    return BadInput(message, field="workspace_store", limit="a pool that can be mounted", remedy=remedy)
