"""Whether what is asked for can begin: the room on this process's own disks and, as their heartbeats say, on the hosts.
Refused before anything of it is written; what runs, and what is queued already, is not asked about."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from orchestrator.clock import Clock
from orchestrator.errors import StoreUnavailable
from orchestrator.executions import Executions, Host
from orchestrator.room import FACT, Place, Rooms, no_room, shortage

_HOST_SEEN: Final = timedelta(seconds=60)
_HOLDS_S: Final = 1.0  # a look at the hosts: not one more call to the store for each submit


class Admission:
    """Of one api process. `rooms` None: its own disks are as large as one likes."""

    def __init__(self, executions: Executions, clock: Clock, rooms: Rooms | None) -> None:
        self._executions = executions
        self._clock = clock
        self._rooms = rooms
        self._hosts: Sequence[Host] = ()
        self._until = 0.0

    async def admit(self, host: str | None = None) -> None:
        """`host`: where it would be, None = on any. Raises DiskFull."""
        if why := await self._own():
            raise no_room(why)
        where, why = await self._elsewhere(host)
        if why:
            raise no_room(why, host=where)

    async def waits(self, host: str | None) -> str:
        """Why what is queued for that host, or any, is not begun; "" = for no want of room."""
        where, why = await self._elsewhere(host)
        return f"host {where} has no room: {why}" if why else ""

    async def reasons(self) -> list[str]:
        """Every shortage there is, for people."""
        own = await self._own()
        return [own] * bool(own) + [f"host {host.name}: {host.facts[FACT]}" for host in await self._living_short()]

    async def _own(self) -> str:
        """Workspaces and archive are the worker's: it says so itself."""
        return shortage(await self._rooms.measure(), Place.DATA, Place.STORE) if self._rooms is not None else ""

    async def _elsewhere(self, host: str | None) -> tuple[str, str]:
        living = await self._living()
        asked = [one for one in living if host in (None, one.name)]
        short = [one for one in asked if one.facts.get(FACT)]
        if not short or len(short) < len(asked):
            return "", ""
        return short[0].name, short[0].facts[FACT]

    async def _living_short(self) -> list[Host]:
        return [host for host in await self._living() if host.facts.get(FACT)]

    async def _living(self) -> list[Host]:
        now = time.monotonic()
        if now >= self._until:
            try:
                self._hosts = await self._executions.hosts()
                self._until = now + _HOLDS_S
            except StoreUnavailable:
                return []  # whoever asks is told so by the store itself
        seen = self._clock.now() - _HOST_SEEN
        return [host for host in self._hosts if host.workers and host.seen_at > seen]
