"""Where time comes from. Knows nothing of who asks.

Decisions take time as an argument; only actors hold a Clock. Deadlines inside one process are measured on `monotonic`,
so that a wall clock that jumps an hour ends nothing early.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for people and records, monotonic seconds for waiting."""

    def now(self) -> datetime:
        """Aware UTC."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start; never goes back."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


def from_ms(value: int) -> datetime:
    """Epoch milliseconds to aware UTC."""
    return datetime.fromtimestamp(value / 1000, UTC)


def to_ms(value: datetime) -> int:
    """Aware UTC to epoch milliseconds."""
    return round(value.timestamp() * 1000)
