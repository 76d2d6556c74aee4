"""Whether this host has room for new work: asked before every claim, told with every heartbeat, and at once when it
changes. Decides nothing about what runs."""

from __future__ import annotations

import asyncio
import logging

from orchestrator.room import Rooms, no_room, shortage

logger = logging.getLogger(__name__)


class Admission:
    """`rooms` None: there is always room. `changed` is set when the answer is another one than before."""

    def __init__(self, rooms: Rooms | None) -> None:
        self._rooms = rooms
        self.why = ""
        self.changed = asyncio.Event()

    async def look(self) -> str:
        """Why nothing new begins here; "" = it does."""
        why = shortage(await self._rooms.measure()) if self._rooms is not None else ""
        if bool(why) != bool(self.why):
            self.changed.set()
            if why:
                logger.error("no room: nothing new is begun, what runs goes on", extra={"why": why})
            else:
                logger.warning("there is room again", extra={"was": self.why})
        self.why = why
        return why


async def check(rooms: Rooms | None) -> None:
    """Raises DiskFull where nothing new begins."""
    if rooms is not None and (why := shortage(await rooms.measure())):
        raise no_room(why)
