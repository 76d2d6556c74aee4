"""The port of live bytes: by an execution's name to its init or its files. Nobody here holds an address.

Terminals, exec and files are bytes, not history: they do not pass through the store. On the same host the socket is
opened directly, so a worker's death is not even noticed.
"""

from __future__ import annotations

from typing import Protocol

from orchestrator.execution import Execution
from orchestrator.sandbox import Duplex
from orchestrator.snapshots import Snapshot
from orchestrator.workspace import Files


class Reach(Protocol):
    """How an api process gets at what is alive."""

    async def open(self, execution: Execution) -> Duplex:
        """A byte stream to the init of its current sandbox, not yet greeted (see link.ViewerLink). Raises Conflict
        when it has no living sandbox (naming its state and the remedy), LinkLost, Unavailable when its host cannot be
        reached from here."""

    async def files(self, execution: Execution) -> Files:
        """Its workspace, in any state that still has one. Raises Conflict (none yet, or removed), Unavailable."""

    async def snapshot_files(self, snapshot: Snapshot) -> Files:
        """A snapshot's, to look into. Raises Conflict (its files are not there), Unavailable (nor to be had here)."""
