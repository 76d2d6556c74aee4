"""Small real filesystems for tests that fill them: ext4 in a file, mounted where the test says; gone at the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class SmallDisk:
    """`point` is its root. `filler` takes room that the test gives back."""

    point: Path

    @property
    def filler(self) -> Path:
        return self.point / "filler"

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.point)
        return found.f_bavail * found.f_frsize

    def fill(self, *, leave_bytes: int) -> None:
        """Until no more than so much is free."""
        with self.filler.open("ab", buffering=0) as file:
            while (over := self.free_bytes - leave_bytes) > 4096:
                try:
                    file.write(bytes(min(over, MIB)))
                except OSError:  # what others take meanwhile
                    break
            os.fsync(file.fileno())

    def empty(self) -> None:
        self.filler.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, *, size_bytes: int = 64 * MIB) -> Iterator[SmallDisk]:
    """Mounted at `folder`/disk. Needs root."""
    image, point = folder / "disk.img", folder / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    try:
        yield SmallDisk(point)
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=True)
