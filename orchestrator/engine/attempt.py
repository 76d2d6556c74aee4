"""One execution from claim to end, sleep or hand-over: the actor.

It turns in one loop, one thing at a time: frames into the history, then what the record wishes, then the next step of
`steps.next_step`, then messages to the harness, then it waits. What takes long (making a sandbox, reaching its init)
runs beside the loop and is dropped when a step makes it pointless. All it remembers can be had again from the record,
the history and init: it may be ended between any two lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from orchestrator.engine.approach import Approach
from orchestrator.engine.arrival import Arrival, Placement, SandboxGone
from orchestrator.engine.cadence import Cadence
from orchestrator.engine.closing import Closing
from orchestrator.engine.cutting import Cutting
from orchestrator.engine.doing import STOP_SIGNAL, Doing
from orchestrator.engine.environment import stdin_of
from orchestrator.engine.leaving import Leaving
from orchestrator.engine.parts import Parts
from orchestrator.engine.placing import place
from orchestrator.engine.reading import INTERRUPT_PREFIX, Exit
from orchestrator.engine.relay import Relay
from orchestrator.engine.scribe import Scribe
from orchestrator.engine.sleeping import Sleeping
from orchestrator.engine.steering import Steering
from orchestrator.engine.steps import Cut, TakeSnapshot, next_step
from orchestrator.engine.stopping import Stopping
from orchestrator.engine.watching import Watching
from orchestrator.engine.way_out import WayOut
from orchestrator.engine.wishes import Wishes
from orchestrator.errors import BadInput, CarrelError, Fenced, LinkError, LinkRefused, Resend, Unavailable
from orchestrator.events import Entry
from orchestrator.execution import Execution
from orchestrator.history import Change, Lease
from orchestrator.lifecycle import WITH_SANDBOX, ExecutionState
from orchestrator.link import Refusal, another_owns

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 0.5  # after a part did not answer
_SHORTLY_S: Final = 0.05
_DEAD_FRAMES: Final = 4096
_CALLS_PART: Final = 0.8  # of a drain's grace, for model calls under way; the rest is for the hand-over

_S = ExecutionState


class Attempt:
    """Runs one claimed execution. `poke` and `drain` may be called at any time; `run` ends by itself."""

    def __init__(
        self,
        parts: Parts,
        lease: Lease,
        execution: Execution,
        deadline_in_s: float | None,
        held: Callable[[], bool],
    ) -> None:
        self._parts = parts
        self._lease = lease
        self._execution = execution
        self.scribe = Scribe(parts.history, lease, execution)
        self._changed = asyncio.Event()
        self._rung = asyncio.Event()
        self._rung.set()
        self._draining = False
        self._stopping = Stopping(parts.clock, execution, deadline_in_s)
        self._held = held
        self._rest_until = parts.clock.monotonic()

    def poke(self) -> None:
        """The record may have changed: read it."""
        self._rung.set()
        self._changed.set()

    def drain(self) -> None:
        """Stop at the next turn, everything left as it is for another owner."""
        self._draining = True
        self._changed.set()

    async def run(self) -> None:
        """Until it has ended, sleeps, waits for another attempt, or `drain`. Raises Fenced when the execution is
        another's."""
        placement: Placement | None = None
        if self.scribe.state is _S.QUEUED:
            if self._draining:
                return
            self._execution, placement = await place(self._parts, self.scribe, self._execution)
        if self.scribe.state not in WITH_SANDBOX:
            return
        self._take_places(self._execution, placement, await Cadence.of(self._parts, self._execution))
        if self.scribe.state in (_S.STOPPING, _S.HIBERNATING):
            self._relay.exit = await self._closing.recall_exit()
        try:
            while self.scribe.state in WITH_SANDBOX and not self._handed_over():
                await self._turn()
        finally:
            await self._leave()
        if self.scribe.state not in WITH_SANDBOX:
            await self._closing.clean_up()

    def _take_places(self, execution: Execution, placement: Placement | None, cadence: Cadence) -> None:
        """Everyone this attempt needs, now that it has its number and its sandbox's name."""
        parts, history, scribe = self._parts, self._parts.history, self.scribe
        changed, rung, stopping = self._changed, self._rung, self._stopping
        self._way_out = WayOut(parts, self._lease, execution, scribe, self._held, changed)
        self._relay = Relay(history, scribe, execution, self._outlived, Leaving(parts, execution).named)
        self._steering = Steering(history, scribe, self._relay.reading, stdin_of(execution), execution.id)
        self._arrival = Arrival(parts, self._lease, execution, changed, self._way_out)
        self._approach = Approach(parts, scribe, execution, self._arrival, placement, changed)
        self._wishes = Wishes(parts, scribe, execution)
        self._cutting = Cutting(
            parts,
            scribe,
            execution,
            self._wishes,
            changed,
            hear=self._hear,
            ends=self._ends,
            exited=self._exited,
            held=self._held,
        )
        self._closing = Closing(parts, scribe, execution, self._steering, stopping, self._way_out, self._cutting)
        self._watching = Watching(
            parts,
            self._lease,
            execution,
            scribe,
            rung,
            relay=self._relay,
            steering=self._steering,
            stopping=stopping,
            arrival=self._arrival,
            approach=self._approach,
            wishes=self._wishes,
            way_out=self._way_out,
            cadence=cadence,
        )
        self._doing = Doing(
            parts,
            execution,
            scribe,
            rung,
            relay=self._relay,
            stopping=stopping,
            arrival=self._arrival,
            approach=self._approach,
            wishes=self._wishes,
            cutting=self._cutting,
            closing=self._closing,
            sleeping=Sleeping(parts, scribe, execution, self._cutting, self._closing, self._way_out, self._exited),
            cadence=cadence,
            watching=self._watching,
            hear=self._hear,
        )

    async def _outlived(self, end: Exit, unwritten: Sequence[Entry]) -> tuple[Entry, Change] | None:
        return await self._closing.killed(end, unwritten, self._relay.failures)

    def _handed_over(self) -> bool:
        """Everything is as another owner may find it: asked to, and no model call is under way any more."""
        return self._draining and self._way_out.leave(self._parts.settings.drain_grace_s * _CALLS_PART)

    # -- one turn --------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        self._changed.clear()
        try:
            await self._way_out.write()
            heard = await self._hear()
            await self._look()
            await self._watching.sample()
            step = next_step(self._watching.view(frozenset(self._doing.interrupts))) if self._rested() else None
            if step is not None and not (self._draining and isinstance(step, Cut | TakeSnapshot)):
                await self._doing.do(step)
                return
            await self._watching.tell_rest()
            if await self._arrive():
                return
            await self._steer()
            if heard:
                return
        except Resend as resend:
            # Our idea of the history was ahead of it: begin again from what it has.
            logger.warning("the history lacks frames; sending again", extra={"src": resend.src})
            await self._approach.hang_up()
            self.scribe.src = self._relay.reading.src = resend.src - 1
            return
        except LinkError as lost:
            logger.info("the line to init is gone", extra={"why": str(lost)})
            await self._approach.hang_up()
            return
        except Unavailable as away:
            logger.warning("a part does not answer", extra={"why": str(away)})
            self._rest_until = self._parts.clock.monotonic() + _AGAIN_S
        await self._wait()

    async def _look(self) -> None:
        if self._rested():
            await self._watching.look()

    def _rested(self) -> bool:
        """The moment is over that was given to a part which did not answer."""
        return self._parts.clock.monotonic() >= self._rest_until

    async def _hear(self) -> bool:
        """A batch of frames, and refusals, from init. True when there was something."""
        link = self._approach.link
        if link is None:
            return False
        batch = await self._relay.pump(link)
        if batch is not None:
            if batch.delivered is not None:
                self._steering.received(batch.delivered)
            if batch.stdin_closed_from is not None:
                self._steering.closed = True
        while link.refusals:
            await self._refused(link.refusals.popleft())
        if batch is None and link.lost is not None:
            if isinstance(link.lost, LinkRefused) and another_owns(link.lost, self._lease.epoch):
                raise Fenced(f"init has a later owner: {link.lost}", epoch=0)
            raise link.lost
        return batch is not None

    async def _refused(self, refusal: Refusal) -> None:
        verb = refusal.fields.get("verb")
        logger.warning("init refused", extra={"verb": verb, "code": refusal.code, "why": refusal.why})
        if verb == "message":
            self._steering.refused(refusal)
        elif verb == "signal" and refusal.code == "not_running":  # it is just being started: again in a moment
            signal_id = str(refusal.fields.get("id", ""))
            self._doing.interrupts.discard(signal_id.removeprefix(INTERRUPT_PREFIX))
            if signal_id == STOP_SIGNAL:
                self._stopping.not_asked()
            self._rest_until = self._parts.clock.monotonic() + _SHORTLY_S
        elif verb == "start":
            self._approach.started = False
            if self.scribe.state is _S.STARTING:
                error = CarrelError(f"the harness could not be started: {refusal.why}")
                if refusal.code == "bad_field":
                    error = BadInput(error.message, field=str(refusal.fields.get("field", "command")))
                await self._closing.not_started(error, failures=self._relay.failures, delivered=self._delivered)

    async def _ends(self) -> bool:
        """Whether what is under way has lost its point: it is to end, or another's to do."""
        with contextlib.suppress(Unavailable):
            await self._look()
        return self._draining or self._watching.wants.cancel is not None or self._stopping.deadline_passed

    def _exited(self) -> bool:
        return self._relay.exit is not None

    @property
    def _delivered(self) -> int:
        return self._relay.reading.delivered

    async def _wait(self) -> None:
        """Until something happens, or a moment comes that was waited for."""
        now = self._parts.clock.monotonic()
        until = self._rest_until if self._rest_until > now else self._watching.next_at()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(until - now, 0.001)):
                await self._changed.wait()

    # -- the way to init -------------------------------------------------------------------------------------------

    async def _arrive(self) -> bool:
        """Have a line to init, or somebody on the way to it. True when something came of it."""
        try:
            arrived = self._approach.arrived()
        except SandboxGone as gone:
            await self._bury(gone)
        except (Fenced, Unavailable):
            raise
        except CarrelError as error:
            if self.scribe.state is not _S.STARTING:
                raise
            logger.warning("the sandbox could not be started", extra={"code": error.code, "why": error.message})
            await self._closing.not_started(error, failures=self._relay.failures, delivered=self._delivered)
        else:
            if arrived is None:
                return False
            self._wishes.frozen = arrived.frozen
            self._watching.touched()
            hello, base = arrived.link.hello, arrived.inbox_base
            self._steering.greeted(max(hello.accepted_n, base), max(hello.delivered_n, base))
        return True

    async def _bury(self, gone: SandboxGone) -> None:
        """The sandbox is gone: what its spool holds is told first, then what became of it."""
        logger.warning("the sandbox is gone", extra={"cause": gone.cause.value, "why": gone.detail})
        left = self._arrival.spool.frames(self.scribe.src)
        while frames := await asyncio.to_thread(lambda: deque(islice(left, _DEAD_FRAMES))):
            while frames:
                await self._relay.write(frames)
        if self._relay.exit is not None:
            return  # it had ended properly; the next step sees that
        if self.scribe.state is _S.STOPPING:
            await self._closing.finish(None, self._delivered)
            return
        ran = self._relay.started or self._execution.started_at is not None
        await self._closing.lost(gone, ran=ran, failures=self._relay.failures, delivered=self._delivered)

    async def _leave(self) -> None:
        await self._approach.turn_back()
        await self._approach.hang_up()
        await self._way_out.drop()

    async def _steer(self) -> None:
        steering = self._steering
        if stdin_of(self._execution) == "none":
            if steering.tail > self._delivered:
                entries, settled = await steering.expire("the harness has no stdin", self._delivered)
                await self.scribe.write(entries, Change(delivered=settled))
                self._relay.reading.delivered = settled
            return
        if (link := self._approach.link) is None or self.scribe.state not in (_S.RUNNING, _S.PAUSED):
            return
        while steering.wants_to_send:
            await steering.send(link)
