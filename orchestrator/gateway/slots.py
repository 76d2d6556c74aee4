"""So many at once, in the order they came; who is not waited for any more leaves the queue. Knows not what for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable


class Deserted(Exception):
    """Nobody waits for whoever was queuing."""


class Slots:
    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)

    @contextlib.asynccontextmanager
    async def one(self, deserted: Awaitable[None]) -> AsyncIterator[None]:
        """Holds one within the block. Raises Deserted when that comes first."""
        turn = asyncio.ensure_future(self._free.acquire())
        left = asyncio.ensure_future(deserted)
        try:
            await asyncio.wait({turn, left}, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                raise Deserted
        except BaseException:
            if turn.cancel():
                await asyncio.wait({turn})
            if not turn.cancelled():
                self._free.release()
            raise
        finally:
            left.cancel()
        try:
            yield
        finally:
            self._free.release()
