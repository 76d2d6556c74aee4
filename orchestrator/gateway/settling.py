"""One reservation settled, once, in one of four ways. Knows no provider.

The store may be away for a moment just when an answer is whole: it is asked again for a while, since without its record
the answer's end must not be passed on. Whoever is cancelled meanwhile still says so, briefly.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

from orchestrator.calls import Answer, Asked, Calls, ModelUsage
from orchestrator.clock import Clock
from orchestrator.errors import CarrelError, StoreUnavailable
from orchestrator.execution import Spend
from orchestrator.gateway.estimates import priced
from orchestrator.history import Lease
from orchestrator.models import Price

STORE_S: Final = 20.0
_FIRST_S: Final = 0.05
_MOST_S: Final = 1.0
_LAST_WORD_S: Final = 2.0


class Settling:
    """For one lease."""

    def __init__(
        self, calls: Calls, lease: Lease, clock: Clock, held: Callable[[], bool], spent: Callable[[Spend], None]
    ) -> None:
        self.calls = calls
        self.lease = lease
        self._clock = clock
        self._held = held
        self._spent = spent

    def of(self, call: str, asked: Asked, price: Price | None) -> Settle:
        return Settle(self, call, asked, price)

    async def patiently(self, ask: Callable[[], Awaitable[Spend]]) -> None:
        """Raises what it raised last."""
        until = self._clock.monotonic() + STORE_S
        pause_s = _FIRST_S
        while True:
            try:
                self._spent(await ask())
                return
            except StoreUnavailable:
                if self._clock.monotonic() > until or not self._held():
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(_MOST_S, pause_s * 2)


class Settle:
    """For one call. `asked`: what it was begun with."""

    def __init__(self, settling: Settling, call: str, asked: Asked, price: Price | None) -> None:
        self.asked = asked
        self.seen: ModelUsage | None = None  # what an answer that is under way has cost so far
        self._settling = settling
        self._call = call
        self._price = price
        self._done = False

    async def finish(self, answer: Answer | None, usage: ModelUsage, facts: dict[str, Any] | None = None) -> None:
        """Raises StoreUnavailable, Fenced: then it is not recorded."""
        told = {**self.asked.facts, **(facts or {})}
        calls, lease = self._settling.calls, self._settling.lease
        self._done = True
        await self._settling.patiently(
            lambda: calls.finish(lease, self._call, answer, priced(usage, self._price), told)
        )

    async def cut(self, why: str) -> None:
        """At what was seen. Settled already: nothing. Says it as far as it can: what it cannot say, `recover` finds."""
        usage = priced(self.seen, self._price) if self.seen is not None else self.asked.if_cut
        await self._last_word(lambda: self._settling.calls.cut(self._settling.lease, self._call, usage, why))

    async def nothing(self) -> None:
        """It never reached a provider. As `cut`."""
        await self._last_word(lambda: self._settling.calls.cancel(self._settling.lease, self._call))

    async def _last_word(self, ask: Callable[[], Awaitable[Spend]]) -> None:
        if not self._done:
            self._done = True
            with contextlib.suppress(CarrelError, TimeoutError):
                async with asyncio.timeout(_LAST_WORD_S):
                    await self._settling.patiently(ask)
