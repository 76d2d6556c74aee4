"""Stores of workspaces for tests, by their kind: in this process, and in one that is to crash."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.workspace import SnapshotStore
from orchestrator.workspaces.btrfs import BtrfsStore
from orchestrator.workspaces.directory import DirectoryStore
from orchestrator.workspaces.pool import Pool

MIB = 1024 * 1024


def store_at(kind: str, folder: Path) -> SnapshotStore:
    """One whose slots and snapshots lie below `folder`, which is on a filesystem of that kind."""
    if kind == "btrfs":
        return BtrfsStore(folder)
    assert kind == "directory"
    return DirectoryStore(folder / "slots")


@contextmanager
def new_pool(size_bytes: int = 512 * MIB) -> Iterator[Pool]:
    """A pool of one's own, mounted; gone at the end."""
    assert os.geteuid() == 0, "mounting needs root"
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    pool = Pool(folder, "carrel-test", size_bytes)
    try:
        pool.open()
        yield pool
    finally:
        subprocess.run(["umount", str(pool.point)], check=False, capture_output=True)
        shutil.rmtree(folder)
