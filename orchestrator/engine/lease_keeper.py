"""Keeps one lease: renews at a quarter of it, and says when it is gone.

Two ways to lose it: the store says that it is another's (Fenced), or the store has not said for the whole lease that
it is ours (Lapsed). In both the work for it stops at once. After Lapsed the store may still hold it for us: `regain`
asks until it says so or not.

Measured on the monotonic clock, from before each renewal was sent: a process that was stopped past its lease finds
that out at its first breath, and until then its writes are fenced, in the store and in init.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from orchestrator.clock import Clock
from orchestrator.errors import StoreUnavailable
from orchestrator.executions import Executions
from orchestrator.history import Lease

logger = logging.getLogger(__name__)

_AGAIN_PART: Final = 16  # of the lease, between tries while the store is away


class Lapsed(Exception):
    """The whole lease passed without a renewal. Nobody else need have it."""


class Hold:
    """How long a lease is surely ours, by this process's own clock. `asked_at`: before the claim was sent."""

    def __init__(self, lease: Lease, clock: Clock, asked_at: float) -> None:
        self.lease = lease
        self._clock = clock
        self._renewed_at = asked_at

    @property
    def left_s(self) -> float:
        """Not positive once somebody else may have it."""
        return self._renewed_at + self.lease.lease_s - self._clock.monotonic()

    def held(self) -> bool:
        """False once somebody else may have it: nothing may be done in its name until it is renewed."""
        return self.left_s > 0

    async def renew(self, executions: Executions) -> None:
        """Raises Fenced, StoreUnavailable."""
        asked_at = self._clock.monotonic()
        await executions.renew(self.lease)
        self._renewed_at = asked_at


async def keep(executions: Executions, hold: Hold, giving_up: Callable[[], bool]) -> None:
    """Until cancelled, or `giving_up` says that the lease is being given back. Raises Fenced, Lapsed."""
    lease_s = hold.lease.lease_s
    wait_s = lease_s / 4
    while True:
        await asyncio.sleep(wait_s)
        if giving_up():
            return
        left_s = hold.left_s
        if left_s <= 0:
            raise Lapsed
        try:
            async with asyncio.timeout(left_s):
                await hold.renew(executions)
            wait_s = lease_s / 4
        except (StoreUnavailable, TimeoutError) as away:
            logger.warning("the lease could not be renewed", extra={"why": str(away), "left_s": round(left_s, 2)})
            wait_s = lease_s / _AGAIN_PART


async def regain(executions: Executions, hold: Hold) -> None:
    """After Lapsed: returns once the store has renewed it after all. Raises Fenced when it is another's by now."""
    while True:
        try:
            await hold.renew(executions)
            return
        except StoreUnavailable:
            await asyncio.sleep(hold.lease.lease_s / _AGAIN_PART)
