"""How many bytes of requests are held in memory at once, by one sandbox and by all of this worker. Knows no request.

A sandbox that opens many connections and sends the largest request on each shall fill its own share and no more.
"""

from __future__ import annotations

from orchestrator.gateway.refusals import Refused


class Room:
    """`within`: the larger one it is a part of."""

    def __init__(self, limit_bytes: int, within: Room | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._within = within

    def take(self, size_bytes: int) -> None:
        """Raises Refused (429)."""
        if self.held_bytes + size_bytes > self.limit_bytes:
            raise Refused(
                429,
                "requests_too_large",
                f"requests under way have more than {self.limit_bytes} bytes together; ask again later",
                limit=f"{self.limit_bytes} bytes",
                retry_after_s=1,
            )
        if self._within is not None:
            self._within.take(size_bytes)
        self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        self.held_bytes -= size_bytes
        if self._within is not None:
            self._within.give_back(size_bytes)


class Holding:
    """What one request holds of it."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._size_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Raises Refused (429)."""
        self._room.take(size_bytes)
        self._size_bytes += size_bytes

    def release(self) -> None:
        """Idempotent."""
        size_bytes, self._size_bytes = self._size_bytes, 0
        self._room.give_back(size_bytes)
