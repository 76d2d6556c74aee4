"""The line to init, or somebody on the way to it: at most one of either, and nobody waits for it.

Knows how a way is begun and given up; which way it is says `arrival`, and what an arrival or a loss means the actor.
"""

from __future__ import annotations

import asyncio

from orchestrator.engine.arrival import Arrival, Arrived, Placement
from orchestrator.engine.parts import Parts
from orchestrator.engine.placing import placement_of
from orchestrator.engine.scribe import Scribe
from orchestrator.execution import Execution
from orchestrator.lifecycle import ExecutionState
from orchestrator.link import OwnerLink


class Approach:
    """Of one attempt in one epoch. `placement` None: whoever placed it is gone, and the history has to be asked.
    `started`: the harness was, as the last that arrived found it."""

    def __init__(
        self,
        parts: Parts,
        scribe: Scribe,
        execution: Execution,
        arrival: Arrival,
        placement: Placement | None,
        changed: asyncio.Event,
    ) -> None:
        self.link: OwnerLink | None = None
        self.started = False
        self._parts = parts
        self._scribe = scribe
        self._execution = execution
        self._arrival = arrival
        self._placement = placement
        self._changed = changed
        self._arriving: asyncio.Task[Arrived] | None = None

    def arrived(self) -> Arrived | None:
        """The line, just reached; None when there is one already, or somebody is on the way (from now on, if nobody
        was). Raises what the way to it ended with."""
        if self.link is not None:
            return None
        if self._arriving is None:
            self._arriving = asyncio.create_task(self._reach(), name="arriving")
            self._arriving.add_done_callback(lambda _: self._changed.set())
            return None
        if not self._arriving.done():
            return None
        arriving, self._arriving = self._arriving, None
        reached = arriving.result()
        self.link, self.started = reached.link, reached.started
        return reached

    async def _reach(self) -> Arrived:
        after, state = self._scribe.src, self._scribe.state
        if state is not ExecutionState.STARTING:
            return await self._arrival.reach(after, unstarted_too=state is ExecutionState.STOPPING)
        if self._placement is None:
            self._placement = await placement_of(self._parts, self._execution, self._scribe.tail)
        return await self._arrival.begin(self._placement, after)

    async def hang_up(self) -> None:
        """Close the line; the next `arrived` begins anew."""
        link, self.link = self.link, None
        if link is not None:
            await link.close()

    async def turn_back(self) -> None:
        """Nobody is on the way any more."""
        arriving, self._arriving = self._arriving, None
        if arriving is None:
            return
        arriving.cancel()
        await asyncio.wait([arriving])
        if not arriving.cancelled() and arriving.exception() is None:
            await arriving.result().link.close()
