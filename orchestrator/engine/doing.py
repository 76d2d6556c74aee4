"""One step taken: what `steps` decided on, done through whoever can, with what it changes for the next view.

Knows whom to ask for each step. Does not know why it is the next one, nor what a failure means for the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from typing import Final

from orchestrator.engine import ending
from orchestrator.engine.approach import Approach
from orchestrator.engine.arrival import Arrival
from orchestrator.engine.cadence import Cadence
from orchestrator.engine.closing import Closing
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.cutting import Cutting, new_id
from orchestrator.engine.parts import Parts
from orchestrator.engine.reading import INTERRUPT_PREFIX
from orchestrator.engine.relay import Relay
from orchestrator.engine.scribe import Scribe
from orchestrator.engine.sleeping import Sleeping
from orchestrator.engine.steps import (
    Cut,
    FallAsleep,
    Finish,
    Hibernate,
    Interrupt,
    Kill,
    Pause,
    Resize,
    Rest,
    Resume,
    Settle,
    Step,
    StopForBudget,
    StopForCancel,
    StopForDeadline,
    StopForDisk,
    TakeSnapshot,
    Terminate,
    Thaw,
)
from orchestrator.engine.stopping import KILL_LIMIT_S, Stopping
from orchestrator.engine.watching import Watching
from orchestrator.engine.wishes import Wishes
from orchestrator.errors import LinkError
from orchestrator.execution import Execution, Outcome, SnapshotWant
from orchestrator.harnesses import harness_of
from orchestrator.history import Change
from orchestrator.lifecycle import Trigger
from orchestrator.link import OwnerLink
from orchestrator.snapshots import Why

STOP_SIGNAL: Final = "stop"


class Doing:
    """Of one attempt in one epoch. `hear`: a batch of frames into the history. `interrupts`: sent, and not refused."""

    def __init__(
        self,
        parts: Parts,
        execution: Execution,
        scribe: Scribe,
        rung: asyncio.Event,
        *,
        relay: Relay,
        stopping: Stopping,
        arrival: Arrival,
        approach: Approach,
        wishes: Wishes,
        cutting: Cutting,
        closing: Closing,
        sleeping: Sleeping,
        cadence: Cadence,
        watching: Watching,
        hear: Callable[[], Awaitable[object]],
    ) -> None:
        self._parts = parts
        self._spec = execution.spec
        self._scribe = scribe
        self._rung = rung
        self._relay = relay
        self._stopping = stopping
        self._arrival = arrival
        self._approach = approach
        self._wishes = wishes
        self._cutting = cutting
        self._closing = closing
        self._sleeping = sleeping
        self._cadence = cadence
        self._watching = watching
        self._hear = hear
        self.interrupts: set[str] = set()

    async def do(self, step: Step) -> None:
        """Raises LinkError, Resend, Unavailable, Fenced: it may be done in part, and is asked for again where it still
        is the next one."""
        if not isinstance(step, Rest | TakeSnapshot | FallAsleep):
            self._watching.touched()
        match step:
            case StopForCancel():
                cancel = self._watching.wants.cancel
                await self._stop(Trigger.CANCEL, ending.cancelled(cancel.reason if cancel is not None else ""))
            case StopForDeadline():
                await self._stop(Trigger.DEADLINE, ending.timed_out(self._spec.limits.deadline_s))
            case StopForBudget():
                await self._stop(Trigger.BUDGET, ending.over_budget(self._stopping.over_budget))
            case StopForDisk():
                await self._stop(Trigger.DISK, ending.disk_full(self._watching.over_disk))
            case Terminate():
                await self._line.signal(STOP_SIGNAL, signal.SIGTERM, to="all")
                self._stopping.asked()
                crash_point("after_terminate")
            case Kill():
                await self._line.kill()
                self._stopping.kill_sent()
                crash_point("after_kill")
            case Finish():
                await self._finish()
            case Cut():
                if self._relay.exit is not None or self._approach.link is None:
                    await self._sleeping.of_the_ended(self._relay.exit, self._relay.reading.delivered)
                else:
                    await self._sleeping.of_the_living(self._approach.link)
            case Hibernate(want):
                await self._scribe.move(Trigger.HIBERNATE, Change(done_wants=(want,)))
                self._rung.set()
                crash_point("after_hibernating")
            case FallAsleep():
                await self._scribe.move(Trigger.IDLE)
                crash_point("after_hibernating")
            case Rest():
                await self._wishes.rest()
            case TakeSnapshot(wish):
                await self._snapshot(wish or SnapshotWant(new_id(), Why.PERIODIC))
            case Pause() | Resume() | Resize():
                await self._wishes.fulfil(step, self._approach.link)
                self._rung.set()  # what is wished next is in the record
                await (self._fell_asleep() if self._wishes.deaf else self._woke_up(step))
            case Thaw():
                await self._wishes.thaw()
                await self._woke_up(step)
            case Settle(want, why):
                await self._wishes.settle(want, why)
                self._rung.set()
            case Interrupt(interrupt):
                crash_point("before_interrupt")
                signum = harness_of(self._spec).interrupt
                await self._line.signal(INTERRUPT_PREFIX + interrupt.id, signum, to="group")
                self.interrupts.add(interrupt.id)

    @property
    def _line(self) -> OwnerLink:
        assert self._approach.link is not None  # such a step is only taken where init is reachable
        return self._approach.link

    async def _snapshot(self, want: SnapshotWant) -> None:
        try:
            await self._cutting.take(want, self._approach.link)
        finally:
            self._rung.set()  # the wish is in what was read of the record meanwhile
        self._cadence.taken(self._parts.clock.monotonic(), frozen=self._wishes.frozen)

    async def _fell_asleep(self) -> None:
        """init is frozen with the rest: what it said before is told, and nothing more is sent for it to answer."""
        while (link := self._approach.link) is not None and link.waiting:
            await self._hear()
        await self._approach.hang_up()

    async def _woke_up(self, step: Step) -> None:
        if isinstance(step, Resume | Thaw):
            self._arrival.frozen = False
            if self._approach.link is None:
                await self._approach.turn_back()  # it may be in the middle of a wait

    async def _stop(self, trigger: Trigger, cause: Outcome) -> None:
        await self._approach.turn_back()  # if it was still being made, there is another way to reach it now
        await self._scribe.move(trigger)
        self._stopping.cause = cause
        crash_point("after_stopping")

    async def _finish(self) -> None:
        """End what the harness left running, then write the end."""
        killed = False
        if (link := self._approach.link) is not None:
            with contextlib.suppress(LinkError, TimeoutError):
                async with asyncio.timeout(KILL_LIMIT_S):
                    await link.kill()
                    await link.stat()  # answered after the kill was done: nothing writes into the files now
                    killed = True
        await self._closing.finish(self._relay.exit, self._relay.reading.delivered, killed=killed)
