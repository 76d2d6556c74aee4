"""Every refusal as an event, and a history that a program which asks for ever cannot fill. Knows no connection."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from orchestrator.errors import CarrelError
from orchestrator.events import EGRESS_REFUSED, Entry
from orchestrator.gateway.egress_policy import Refused
from orchestrator.gateways import Tell

log = logging.getLogger(__name__)

EVENTS: Final = 1000  # of one gateway; the last of them says that the rest is only counted
TELL_LIMIT_S: Final = 5.0


class Refusals:
    """Those of one sandbox while this gateway is open. `count`: all of them, told or not."""

    def __init__(self, execution_id: str, tell: Tell) -> None:
        self._execution_id = execution_id
        self._tell = tell
        self._telling: set[asyncio.Task[None]] = set()
        self.count = 0

    async def add(self, refused: Refused) -> None:
        """Returns when it stands in the history; or after TELL_LIMIT_S, or when it cannot be written: a program inside
        waits for its answer no longer than that."""
        self.count += 1
        if self.count > EVENTS:
            return
        data = {"host": refused.host, "port": refused.port, "why": refused.why}
        if self.count == EVENTS:
            data["note"] = f"the {EVENTS}th refusal; further ones are counted, not written"
        task = asyncio.create_task(self._write(Entry(EGRESS_REFUSED, data)))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)
        await asyncio.wait({task}, timeout=TELL_LIMIT_S)

    async def close(self) -> None:
        """What is being written has TELL_LIMIT_S more."""
        if self._telling:
            await asyncio.wait(self._telling, timeout=TELL_LIMIT_S)
        for task in self._telling:
            task.cancel()
        if self.count > EVENTS:
            log.warning("%s: %d egress refusals, %d in the history", self._execution_id, self.count, EVENTS)

    async def _write(self, entry: Entry) -> None:
        try:
            await self._tell(entry)
        except CarrelError as failure:
            log.warning("%s: refusal of %s not written: %s", self._execution_id, entry.data, failure)
