"""One stream read as it grows: a blocking XREAD after the other, over a store that goes away and comes back. Knows not
what the entries are and who waits for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from orchestrator.errors import StoreUnavailable
from orchestrator.stores.redis.connection import LineLost, Server

Rows = list[tuple[bytes, Any]]

_BLOCK_S: Final = 5.0
_FIRST_WAIT_S: Final = 0.01
_LAST_WAIT_S: Final = 0.5


async def tail(server: Server, key: str, place: Callable[[], tuple[int, int]]) -> AsyncIterator[Rows]:
    """Entries from `place()` on, which is asked before each read: after which seq, and at most how many. No rows after
    a quiet while, so that the caller looks whether the stream is still the one it reads. Raises StoreUnavailable when
    the store has been away for longer than its patience."""
    clock = asyncio.get_running_loop().time
    wait_s, away_since = _FIRST_WAIT_S, None
    while True:
        seq, count = place()
        read = ("XREAD", "COUNT", count, "BLOCK", int(_BLOCK_S * 1000), "STREAMS", key, f"{seq}-0")
        try:
            reply = await server.block(*read, block_s=_BLOCK_S)
        except LineLost as lost:
            away_since = away_since or clock()
            if clock() - away_since > server.patience_s:
                raise StoreUnavailable(f"the store is away: {lost}", retry_after_s=1.0) from lost
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LAST_WAIT_S)
            continue
        wait_s, away_since = _FIRST_WAIT_S, None
        yield reply[0][1] if reply else []
