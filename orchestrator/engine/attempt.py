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
import signal
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from orchestrator import events
from orchestrator.engine import ending
from orchestrator.engine.approach import Approach
from orchestrator.engine.arrival import Arrival, Placement, SandboxGone
from orchestrator.engine.closing import Closing
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.environment import stdin_of
from orchestrator.engine.parts import Parts
from orchestrator.engine.placing import place
from orchestrator.engine.reading import INTERRUPT_PREFIX, Exit
from orchestrator.engine.relay import Relay
from orchestrator.engine.scribe import Scribe
from orchestrator.engine.steering import Steering
from orchestrator.engine.steps import (
    Cut,
    Finish,
    Interrupt,
    Kill,
    Pause,
    Resize,
    Resume,
    Settle,
    Step,
    StopForBudget,
    StopForCancel,
    StopForDeadline,
    Terminate,
    Thaw,
    View,
    next_step,
)
from orchestrator.engine.stopping import KILL_LIMIT_S, Stopping
from orchestrator.engine.way_out import WayOut
from orchestrator.engine.wishes import Wishes
from orchestrator.errors import (
    BadInput,
    CarrelError,
    Fenced,
    LinkError,
    LinkRefused,
    Resend,
    StoreUnavailable,
    Unavailable,
)
from orchestrator.events import Entry
from orchestrator.execution import Execution, Outcome
from orchestrator.harnesses import harness_of
from orchestrator.history import Change, Lease
from orchestrator.lifecycle import WITH_SANDBOX, ExecutionState, Trigger
from orchestrator.link import OwnerLink, Refusal, another_owns
from orchestrator.sandbox import Running

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 0.5  # after a part did not answer
_SHORTLY_S: Final = 0.05
STOP_SIGNAL: Final = "stop"
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
        self._wants = execution.wants
        self.scribe = Scribe(parts.history, lease, execution)
        self._changed = asyncio.Event()
        self._poked = True
        self._draining = False
        now = parts.clock.monotonic()
        self._stopping = Stopping(parts.clock, execution, deadline_in_s)
        self._held = held
        self._look_at = now + parts.settings.look_s
        self._rest_until = now
        self._started = False
        self._told_held = False
        self._interrupts: set[str] = set()

    def poke(self) -> None:
        """The record may have changed: read it."""
        self._poked = True
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
        self._take_places(self._execution, placement)
        if self.scribe.state in (_S.STOPPING, _S.HIBERNATING):
            self._relay.exit = await self._closing.recall_exit()
        try:
            while self.scribe.state in WITH_SANDBOX and not self._handed_over():
                await self._turn()
        finally:
            await self._leave()
        if self.scribe.state not in WITH_SANDBOX:
            await self._closing.clean_up()

    def _take_places(self, execution: Execution, placement: Placement | None) -> None:
        """Everyone this attempt needs, now that it has its number and its sandbox's name."""
        parts, history, scribe, changed = self._parts, self._parts.history, self.scribe, self._changed
        self._way_out = WayOut(parts, self._lease, execution, scribe, self._held, changed)
        self._relay = Relay(history, scribe, execution, self._outlived)
        self._steering = Steering(history, scribe, self._relay.reading, stdin_of(execution), execution.id)
        self._arrival = Arrival(parts, self._lease, execution, changed, self._way_out)
        self._approach = Approach(parts, scribe, execution, self._arrival, placement, changed)
        self._wishes = Wishes(parts, scribe, execution)
        self._closing = Closing(parts, scribe, execution, self._steering, self._stopping, self._way_out)

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
            step = next_step(self._view()) if self._parts.clock.monotonic() >= self._rest_until else None
            if step is not None:
                await self._do(step)
                return
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
            self._interrupts.discard(signal_id.removeprefix(INTERRUPT_PREFIX))
            if signal_id == STOP_SIGNAL:
                self._stopping.not_asked()
            self._rest_until = self._parts.clock.monotonic() + _SHORTLY_S
        elif verb == "start":
            self._started = False
            if self.scribe.state is _S.STARTING:
                error = CarrelError(f"the harness could not be started: {refusal.why}")
                if refusal.code == "bad_field":
                    error = BadInput(error.message, field=str(refusal.fields.get("field", "command")))
                await self._closing.not_started(error, failures=self._relay.failures, delivered=self._delivered)

    async def _look(self) -> None:
        """Read the record where somebody rang, and everything once in a while, in case a bell was lost."""
        now = self._parts.clock.monotonic()
        periodic = now >= self._look_at
        if not self._poked and not periodic:
            return
        if now < self._rest_until:
            return
        self._poked = False
        try:
            record = await self._parts.executions.get(self._execution.id)
        except StoreUnavailable:
            self._poked = True
            raise
        if record.epoch != self._lease.epoch:
            raise Fenced("another worker claimed it", epoch=record.epoch)
        self._wants = record.wants
        self._stopping.read(record)
        self._way_out.update(record)
        self._wishes.resources = record.resources
        self._steering.tail = max(self._steering.tail, record.inbox_tail)
        if periodic:
            self._look_at = now + self._parts.settings.look_s
            if self._approach.link is not None and self.scribe.state is _S.RUNNING:
                await self._observe(self._approach.link)

    async def _observe(self, link: OwnerLink) -> None:
        """What nobody rings for: frozen by another's hand, killed for memory, held back. An adopted execution is told
        again what was told before: `kills` counts from its start."""
        status = await self._parts.driver.observe(self._arrival.sandbox_id)
        self._wishes.frozen = isinstance(status, Running) and status.paused
        if isinstance(status, Running) and status.oom_kills > self._relay.reading.oom_kills:
            self._relay.reading.oom_kills = status.oom_kills
            await self.scribe.write([Entry(events.SANDBOX_OOM, {"kills": status.oom_kills})])
        if link.held and not self._told_held:
            await self.scribe.write([Entry(events.SANDBOX_HELD, {"spool_bytes": link.spool_bytes})])
        self._told_held = link.held

    def _view(self) -> View:
        stopping, link = self._stopping, self._approach.link
        return View(
            state=self.scribe.state,
            wants=self._wants,
            attempt=self.scribe.attempt,
            reachable=link is not None,
            frozen=self._wishes.frozen or (link is None and self._arrival.frozen),
            exited=self._relay.exit is not None,
            harness_started=self._started,
            deadline_passed=stopping.deadline_passed,
            budget_passed=stopping.budget_passed,
            no_grace=stopping.grace_s <= 0,
            asked_to_stop=stopping.was_asked,
            grace_passed=stopping.grace_passed,
            killed=stopping.killed,
            kill_passed=stopping.kill_passed,
            interrupts_sent=frozenset(self._interrupts),
        )

    @property
    def _delivered(self) -> int:
        return self._relay.reading.delivered

    async def _wait(self) -> None:
        """Until something happens, or a moment comes that was waited for."""
        now = self._parts.clock.monotonic()
        moments = [self._look_at, *self._stopping.moments(self.scribe.state)]
        if self._rest_until > now:
            moments = [self._rest_until]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(min(moments) - now, 0.001)):
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
            self._wishes.frozen, self._started = arrived.frozen, arrived.started
            self._steering.greeted(arrived.link)
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

    # -- steps -----------------------------------------------------------------------------------------------------

    async def _do(self, step: Step) -> None:
        match step:
            case StopForCancel():
                reason = self._wants.cancel.reason if self._wants.cancel is not None else ""
                await self._stop(Trigger.CANCEL, ending.cancelled(reason))
            case StopForDeadline():
                await self._stop(Trigger.DEADLINE, ending.timed_out(self._execution.spec.limits.deadline_s))
            case StopForBudget():
                await self._stop(Trigger.BUDGET, ending.over_budget(self._stopping.over_budget))
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
                await self._closing.cut(self._delivered, self._relay.exit)
            case Pause() | Resume() | Resize():
                await self._wishes.fulfil(step, self._approach.link)
                self._poked = True  # what is wished next is in the record
                await (self._fell_asleep() if self._wishes.deaf else self._woke_up(step))
            case Thaw():
                await self._wishes.thaw()
                await self._woke_up(step)
            case Settle(want, why):
                await self._wishes.settle(want, why)
                self._poked = True
            case Interrupt(interrupt):
                crash_point("before_interrupt")
                signum = harness_of(self._execution.spec).interrupt
                await self._line.signal(INTERRUPT_PREFIX + interrupt.id, signum, to="group")
                self._interrupts.add(interrupt.id)

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

    @property
    def _line(self) -> OwnerLink:
        assert self._approach.link is not None  # such a step is only taken where init is reachable
        return self._approach.link

    async def _stop(self, trigger: Trigger, cause: Outcome) -> None:
        await self._approach.turn_back()  # if it was still being made, there is another way to reach it now
        await self.scribe.move(trigger)
        self._stopping.cause = cause
        crash_point("after_stopping")

    async def _finish(self) -> None:
        """End what the harness left running, then write the end."""
        if (link := self._approach.link) is not None:
            with contextlib.suppress(LinkError, TimeoutError):
                async with asyncio.timeout(KILL_LIMIT_S):
                    await link.kill()
                    await link.stat()  # answered after the kill was done: nothing writes into the files now
        await self._closing.finish(self._relay.exit, self._delivered)

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
