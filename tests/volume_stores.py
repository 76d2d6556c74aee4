"""Stores of workspaces for tests, by their kind: in this process, and in one that is to crash."""

from __future__ import annotations

from pathlib import Path

from orchestrator.workspace import SnapshotStore
from orchestrator.workspaces.directory import DirectoryStore


def store_at(kind: str, folder: Path) -> SnapshotStore:
    """One whose slots and snapshots lie below `folder`, which is on a filesystem of that kind."""
    assert kind == "directory"
    return DirectoryStore(folder / "slots")
