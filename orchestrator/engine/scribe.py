"""The one pen of one execution in one epoch: every append goes through here, numbered, until it is written or refused.

Knows the record as far as it wrote it (state, tail, src). Does not know why something is written.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from orchestrator.errors import Closed, Fenced, StoreUnavailable
from orchestrator.events import Entry
from orchestrator.execution import Execution
from orchestrator.history import Appended, Change, History, Lease, Spooled
from orchestrator.lifecycle import ExecutionState, Trigger, advance

logger = logging.getLogger(__name__)

FIRST_WAIT_S: Final = 0.02
LAST_WAIT_S: Final = 1.0


class Scribe:
    """Writes in order, one call at a time (one actor owns it). `giving_up` is True from the moment an append that
    gives the lease up was begun: a renewal that is refused after that tells nothing. `frozen`: as the record has it."""

    def __init__(self, history: History, lease: Lease, execution: Execution) -> None:
        self.lease = lease
        self.state: ExecutionState = execution.state
        self.attempt = execution.attempt
        self.src = execution.src
        self.tail = execution.tail
        self.frozen = execution.frozen
        self.giving_up = False
        self._own = execution.own
        self._history = history

    async def write(
        self, entries: Sequence[Entry] = (), change: Change | None = None, *, spooled: Spooled | None = None
    ) -> Appended:
        """Append. While the store does not answer: again and again, for as long as the caller lives; the call is
        numbered, so a lost reply writes nothing twice.

        Raises Fenced when the lease is another's (or the history was closed meanwhile), Resend."""
        own = None
        if entries or _needs_number(change):
            self._own += 1
            own = self._own
        if change is not None and change.attempt is not None:
            self.attempt, self.src = change.attempt, 0
        if change is not None and change.unowned:
            self.giving_up = True
        wait_s = FIRST_WAIT_S
        while True:
            try:
                done = await self._history.append(
                    self.lease, attempt=self.attempt, spooled=spooled, own=own, entries=entries, change=change
                )
                break
            except StoreUnavailable as away:
                logger.warning("the store does not answer; holding", extra={"why": str(away), "again_in_s": wait_s})
            except Closed as closed:
                raise Fenced(f"the history was ended by somebody else: {closed}", epoch=0) from None
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, LAST_WAIT_S)
        self.state, self.tail, self.src = done.state, done.tail, done.src
        if change is not None and (change.frozen is not None or change.trigger is not None):
            self.frozen = bool(change.frozen)
        return done

    async def move(
        self,
        trigger: Trigger,
        change: Change | None = None,
        *,
        entries: Sequence[Entry] = (),
        spooled: Spooled | None = None,
    ) -> Appended:
        """Write `entries`, then a transition with its change, as one. The store adds the events of the transition."""
        moved = advance(self.state, trigger)
        logger.info("moves", extra={"from": self.state.value, "to": moved.value, "trigger": trigger.value})
        change = replace(change or Change(), trigger=trigger, expects=self.state)
        return await self.write(entries, change, spooled=spooled)


def _needs_number(change: Change | None) -> bool:
    """A change of only what frames said is made idempotent by their `src`."""
    if change is None:
        return False
    return change != Change(delivered=change.delivered, consumed=change.consumed, output_mode=change.output_mode)
