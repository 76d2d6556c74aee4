"""What an execution leaves: artifacts its harness names while it runs, and all of them at its end, onto the shelf.

The bytes are on the shelf before the history tells of them. Nothing that goes wrong here keeps an execution from its
end: it is told as a refusal, or logged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from orchestrator import events
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.parts import Parts
from orchestrator.errors import CarrelError, NotFound
from orchestrator.events import Entry
from orchestrator.execution import Execution
from orchestrator.shelf import Kept

logger = logging.getLogger(__name__)


class Leaving:
    """Of one execution."""

    def __init__(self, parts: Parts, execution: Execution) -> None:
        self._parts = parts
        self._execution = execution

    async def named(self, told: Sequence[Entry]) -> None:
        """By events of the harness: `path`, where it is text."""
        paths = [path for entry in told if isinstance(path := entry.data.get("path"), str) and path]
        try:
            await self._parts.shelf.name(self._execution.id, paths)
        except CarrelError as failure:
            logger.warning("an artifact's name is not remembered", extra={"paths": len(paths), "why": failure.message})

    async def kept(self) -> list[Entry]:
        """All of them, on the shelf, as events. Nothing may work in the workspace any more, or what it exchanges
        meanwhile is refused."""
        sandbox_id = self._execution.sandbox_id
        try:
            files = self._parts.workspaces.files(sandbox_id or "")
        except NotFound:
            return []
        async with self._parts.hashing:
            try:
                kept = await self._parts.shelf.keep(self._execution.id, files)
            except (CarrelError, OSError) as failure:
                logger.error("artifacts are not kept", extra={"execution": self._execution.id, "why": str(failure)})
                return [Entry(events.ARTIFACT, {"path": "", "size_bytes": 0, "refused": str(failure)})]
        crash_point("after_artifacts")
        return [_told(one) for one in kept]


def _told(one: Kept) -> Entry:
    data: dict[str, Any] = {"path": one.path.encode(errors="replace").decode(), "size_bytes": one.size_bytes}
    data |= {"refused": one.refused.encode(errors="replace").decode()} if one.refused else {"sha256": one.sha256}
    return Entry(events.ARTIFACT, data)
