"""How much room is left on the disks of a host, below which mark nothing new begins there, and how that is said. Pure.

Work that runs takes more room as it goes. So new work is refused while there is still some: what runs goes on, and when
there is room again everything does, by itself. Knows no disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from orchestrator.errors import DiskFull

#: What a host's heartbeat says of it, where it is short of room.
FACT: Final = "short"
RETRY_AFTER_S: Final = 10.0
#: Fewer names than this left is no room, however many bytes there are.
LEAST_NAMES: Final = 1024


class Place(StrEnum):
    """Each has its setting, `<place>_low`."""

    WORKSPACES = "workspaces"  # slots and snapshots; the pool, and the disk its file is on
    DATA = "data"  # uploaded files, logs; spools where workspaces are plain directories
    STORE = "store"  # the embedded Redis's directory
    ARCHIVE = "archive"  # where it is a folder


@dataclass(frozen=True, slots=True)
class Mark:
    """So many bytes, or so much of the whole, or both: then the smaller. 0 = none."""

    size_bytes: int = 0
    percent: float = 0.0

    def least_bytes(self, total_bytes: int) -> int:
        part = int(total_bytes * self.percent / 100)
        if self.size_bytes and self.percent:
            return min(self.size_bytes, part)
        return self.size_bytes or part

    def __str__(self) -> str:
        size = f"{self.size_bytes >> 20}m" if self.size_bytes % (1 << 20) == 0 else str(self.size_bytes)
        return ",".join(filter(None, (size if self.size_bytes else "", f"{self.percent:g}%" if self.percent else "")))


@dataclass(frozen=True, slots=True)
class Room:
    """Of one place now. `free_names`: how many more files it may hold; None = no such limit."""

    place: Place
    free_bytes: int
    total_bytes: int
    least_bytes: int
    free_names: int | None = None

    @property
    def short(self) -> bool:
        if not self.least_bytes:
            return False
        return self.free_bytes < self.least_bytes or (self.free_names is not None and self.free_names < LEAST_NAMES)

    def __str__(self) -> str:
        if self.free_bytes >= self.least_bytes and self.short:
            return f"{self.place}: room for {self.free_names} more files, new work needs {LEAST_NAMES}"
        free, total, least = (
            f"{count / (1 << 20):.0f} MiB" for count in (self.free_bytes, self.total_bytes, self.least_bytes)
        )
        return f"{self.place}: {free} free of {total}, new work needs {least} ({self.place}_low)"


class Rooms(Protocol):
    """The disks of this host."""

    async def measure(self) -> Sequence[Room]:
        """As they are, or were a second ago. Raises nothing: what cannot be measured is not in it."""


def shortage(rooms: Iterable[Room], *places: Place) -> str:
    """Where room is short, for people; "" = nowhere. Of these places, or of all."""
    return "; ".join(str(room) for room in rooms if room.short and (not places or room.place in places))


def no_room(why: str, *, host: str = "") -> DiskFull:
    """The error of what is not begun. `why`: as `shortage` says it."""
    where = why.partition(":")[0]
    return DiskFull(
        f"nothing new is begun{f' on host {host}' if host else ''}, for want of room: {why}",
        where=where,
        field="disk",
        limit=f"{where}_low",
        remedy="make room, for example `carrel rm` and `carrel snapshot rm`, or lower the mark; what runs goes on, and"
        " what waits begins by itself",
        retry_after_s=RETRY_AFTER_S,
    )
