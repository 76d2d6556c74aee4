"""A share of the worker's time: what one sandbox makes it compute in one piece waits its turn. Knows not what it is.

Reading and writing 30 MB of JSON takes most of a second that nobody else has; whoever asks for it rests three times as
long before the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from orchestrator.clock import Clock

LARGE_BYTES: Final = 256 << 10  # what is smaller takes a few milliseconds
_REST: Final = 3.0

T = TypeVar("T")


class Pace:
    """Of one sandbox."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._one = asyncio.Lock()
        self._rested_at = 0.0

    async def take(self, size_bytes: int, work: Callable[[], T]) -> T:
        """What `work` returns or raises. In a thread where it is large: between its steps others have their turn."""
        if size_bytes < LARGE_BYTES:
            return work()
        async with self._one:
            if (rest_s := self._rested_at - self._clock.monotonic()) > 0:
                await asyncio.sleep(rest_s)
            began = self._clock.monotonic()
            try:
                return await asyncio.to_thread(work)
            finally:
                now = self._clock.monotonic()
                self._rested_at = now + _REST * (now - began)
