"""How full the disks are that an installation writes to on this host: the port `orchestrator.room.Rooms`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from orchestrator.errors import CarrelError
from orchestrator.room import Mark, Place, Room
from orchestrator.workspace import SnapshotStore

log = logging.getLogger(__name__)

HOLDS_S: Final = 1.0


class DiskRooms:
    """`folders` of the places that are folders; `store` knows of the workspaces. `marks`: a place without one is never
    short. Any of it may be made later: then the folder above it counts."""

    def __init__(self, store: SnapshotStore | None, folders: Mapping[Place, Path], marks: Mapping[Place, Mark]) -> None:
        self._store = store
        self._folders = folders
        self._marks = marks
        self._seen: Sequence[Room] = ()
        self._until = 0.0

    async def measure(self) -> Sequence[Room]:
        now = time.monotonic()
        if now >= self._until:
            self._until = now + HOLDS_S  # before: others ask meanwhile
            self._seen = await self._measure()
        return self._seen

    async def _measure(self) -> Sequence[Room]:
        rooms = []
        if self._store is not None:
            try:
                facts = await self._store.facts()
                rooms.append(self._room(Place.WORKSPACES, facts.free_bytes, facts.total_bytes))
            except (CarrelError, OSError) as failure:
                log.warning("the workspaces' room is not known", extra={"why": str(failure)})
        for place, folder in self._folders.items():
            try:
                found = await asyncio.to_thread(_statvfs, folder)
            except OSError as failure:
                log.warning("room is not known", extra={"place": place.value, "why": str(failure)})
                continue
            free_names = found.f_favail if found.f_files else None
            free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
            rooms.append(self._room(place, free, total, free_names))
        return rooms

    def _room(self, place: Place, free_bytes: int, total_bytes: int, free_names: int | None = None) -> Room:
        mark = self._marks.get(place, Mark())
        return Room(place, free_bytes, total_bytes, mark.least_bytes(total_bytes), free_names)


def _statvfs(folder: Path) -> os.statvfs_result:
    there = next(one for one in (folder, *folder.parents) if one.is_dir())
    return os.statvfs(there)
