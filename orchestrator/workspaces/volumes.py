"""What a store does with one `vol`: makes, copies, bounds, measures, removes it. The seam of `store`.

Knows nothing of slots and snapshots, of who needs what when, and of what lies in a `vol`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from orchestrator.workspace import DiskUse, StoreFacts


class Volumes(Protocol):
    """All methods block. Paths are folders of ours on one filesystem, which nobody else writes; what lies in them is
    hostile."""

    def facts(self, at: Path) -> StoreFacts: ...

    def make(self, path: Path, disk_bytes: int) -> None:
        """An empty one. Raises OSError; Infeasible(field="disk_bytes") for a limit it cannot keep."""

    def keep(self, volume: Path, path: Path) -> None:
        """An immutable copy, whole on disk. Raises OSError; Conflict for what cannot be copied."""

    def settle(self, volume: Path, path: Path) -> None:
        """What was made and filled, and is on disk, becomes immutable under this path."""

    def begin(self, kept: Path, path: Path, disk_bytes: int) -> None:
        """A copy that can be written. Raises as `make`."""

    def limit(self, volume: Path, disk_bytes: int) -> None:
        """0 = none. Raises Infeasible(field="disk_bytes")."""

    def use(self, volume: Path) -> DiskUse: ...

    def remove(self, path: Path) -> bool:
        """A folder, with any volumes in it; False when something was left (logged). Absent already is fine."""

    def tend(self, at: Path) -> None:
        """Mend what may have gone wrong by itself on the filesystem at this folder. Raises nothing."""
