"""The ways an attempt is over: finished, asleep, lost, never started. First the record, then the removal.

Knows what is written at each end and in which order. Does not know what led there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from orchestrator import events
from orchestrator.clock import to_ms
from orchestrator.engine import ending, recall
from orchestrator.engine.arrival import SandboxGone, cause_of
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.cutting import Cutting
from orchestrator.engine.disk import over_limit
from orchestrator.engine.leaving import Leaving
from orchestrator.engine.parts import Parts
from orchestrator.engine.reading import Exit
from orchestrator.engine.restoring import survives
from orchestrator.engine.scribe import Scribe
from orchestrator.engine.steering import Steering
from orchestrator.engine.stopping import Stopping
from orchestrator.engine.way_out import WayOut
from orchestrator.errors import CarrelError, StoreUnavailable
from orchestrator.events import Entry, Event
from orchestrator.execution import Execution, Outcome, OutcomeKind, Reason
from orchestrator.harnesses import harness_of
from orchestrator.history import Change
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.retry import Again, Cause, decide
from orchestrator.snapshots import Snapshot

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 0.2


class Closing:
    """Of one attempt."""

    def __init__(
        self,
        parts: Parts,
        scribe: Scribe,
        execution: Execution,
        steering: Steering,
        stopping: Stopping,
        way_out: WayOut,
        cutting: Cutting,
    ) -> None:
        assert execution.sandbox_id is not None
        self._parts = parts
        self._scribe = scribe
        self._execution = execution
        self._steering = steering
        self._stopping = stopping
        self._way_out = way_out
        self._cutting = cutting
        self._sandbox_id = execution.sandbox_id

    async def finish(self, end: Exit | None, delivered: int, *, killed: bool = False) -> None:
        """STOPPING → FINISHED, with receipts, a snapshot, artifacts and the outcome: the cause this owner decided on,
        else another's, which the history knows, else that a call was over budget, else how the harness ended.
        `killed`: nothing of it runs any more."""
        cause = self._stopping.cause or await self._why_it_stops()
        if end is None:
            end = await self.recall_exit()
        await self._way_out.close(0.0)
        if cause is None:  # it stopped by itself
            figures = await self._refused_for_money()
            if figures:
                cause = ending.over_budget(figures)
            else:
                cause = ending.exited(end) if end is not None else _unexplained()
        outcome = ending.outcome_of(cause, end)
        inbox = delivered if end is None or end.inbox is None else end.inbox
        told, snapshot = await self._cutting.at_end(inbox, killed=killed)
        await self.end(Trigger.STOPPED, outcome, told, delivered, snapshot)

    async def killed(self, end: Exit, unwritten: Sequence[Entry], failures: int) -> tuple[Entry, Change] | None:
        """The harness of a running execution was ended by a signal: what is told and changed when another attempt is
        to follow, None when this is the end of it. `unwritten`: what goes into the history with its exit. The
        interrupt's signal is nobody's kill: it was asked for."""
        harness = harness_of(self._execution.spec)
        if end.signal is None or end.oom or end.signal == harness.interrupt or await self._refused_for_money():
            return None
        detail = f"the harness was ended by signal {end.signal}"
        kills = 0 if any(map(_is_new, unwritten)) else await self._kills_in_a_row()
        decision = decide(
            Cause.HARNESS_KILLED,
            failures=max(failures, kills),
            policy=self._execution.spec.retry,
            ran=True,
            resumes=harness.resumes,
            files_intact=await survives(self._parts, self._execution),
            detail=detail,
        )
        if not isinstance(decision, Again):
            return None
        # A call under way is what the next attempt begins with: its answer is worth waiting for.
        await self._way_out.close(self._parts.settings.drain_grace_s)
        told = {"reason": Cause.HARNESS_KILLED.value, "detail": detail, "in_a_row": kills + 1}
        return Entry(events.SANDBOX_LOST, told), self._due_in(decision.after_s, failures)

    async def _kills_in_a_row(self) -> int:
        """How often it was killed since it last did what it had never done before. Its output is no such step: whoever
        prints and dies of it would print and die for ever."""

        def wanted(event: Event) -> bool:
            return _is_new(event) or (event.type == events.SANDBOX_LOST and "in_a_row" in event.data)

        while True:
            try:
                # Calls and intents write their events themselves: our own idea of the tail may be behind.
                record = await self._parts.executions.get(self._execution.id)
                last = await recall.last_event(self._parts.history, self._execution, record.tail, wanted)
                break
            except StoreUnavailable as away:
                logger.warning("the store does not answer; holding", extra={"why": str(away)})
            await asyncio.sleep(_AGAIN_S)
        return int(last.data["in_a_row"]) if last is not None and last.type == events.SANDBOX_LOST else 0

    async def _refused_for_money(self) -> str:
        """The figures, where the execution is to fail for it. The record is asked: the bell may be late."""
        if self._stopping.unbounded:
            return ""
        while True:
            try:
                self._stopping.read(await self._parts.executions.get(self._execution.id))
                return self._stopping.over_budget
            except StoreUnavailable as away:  # held as an append would be: frames were read that must not be dropped
                logger.warning("the store does not answer; holding", extra={"why": str(away)})
            await asyncio.sleep(_AGAIN_S)

    async def lost(self, gone: SandboxGone, *, ran: bool, failures: int, delivered: int) -> None:
        """The sandbox is gone and all it left is in the history: another attempt, or the end."""
        lost = Entry(events.SANDBOX_LOST, {"reason": gone.cause.value, "detail": gone.detail})
        crash_point("before_lost_append")
        intact = not gone.with_files and await survives(self._parts, self._execution)
        decision = decide(
            gone.cause,
            failures=failures,
            policy=self._execution.spec.retry,
            ran=ran,
            resumes=harness_of(self._execution.spec).resumes,
            files_intact=intact,
            detail=gone.detail,
        )
        starting = gone.cause is Cause.START_FAILED
        # What another attempt will ask first may be under way: its answer is worth waiting for.
        await self._way_out.close(self._parts.settings.drain_grace_s if isinstance(decision, Again) else 0.0)
        if isinstance(decision, Again):
            trigger = Trigger.START_FAILED if starting else Trigger.SANDBOX_LOST
            await self._again(trigger, lost, decision.after_s, failures)
        else:
            trigger = Trigger.START_ABANDONED if starting else Trigger.SANDBOX_ABANDONED
            kept, snapshot = await self._cutting.at_end(delivered) if ran else ([], None)
            await self.end(trigger, decision.outcome, [lost, *kept], delivered, snapshot)
        crash_point("after_lost_append")

    async def not_started(self, error: CarrelError, *, failures: int, delivered: int) -> None:
        """This attempt's sandbox could not be made, or its harness not be started: again later, or the end."""
        cause = cause_of(error)
        decision = decide(
            cause,
            failures=failures,
            policy=self._execution.spec.retry,
            ran=self._execution.started_at is not None,
            resumes=harness_of(self._execution.spec).resumes,
            files_intact=True,
            detail=error.message,
        )
        failed = Entry(events.SANDBOX_LOST, {"reason": cause.value, "detail": error.message})
        await self._way_out.close(0.0)
        crash_point("before_lost_append")
        if isinstance(decision, Again):
            await self._again(Trigger.START_FAILED, failed, decision.after_s, failures)
        else:
            await self.end(Trigger.START_ABANDONED, decision.outcome, [failed], delivered)
        crash_point("after_lost_append")

    async def clean_up(self) -> None:
        """The attempt is over, in the record: sandbox and sockets go, `vol` stays. What fails is the sweeper's."""
        try:
            await self._parts.driver.remove(self._sandbox_id)
            await self._parts.workspaces.strip(self._sandbox_id)
        except CarrelError as failure:
            logger.warning("left to the sweeper", extra={"sandbox": self._sandbox_id, "why": str(failure)})
        crash_point("after_remove")

    async def recall_exit(self) -> Exit | None:
        """The harness's end as an earlier owner wrote it, in this attempt."""

        def wanted(event: Event) -> bool:
            return event.type in (events.EXITED, events.SANDBOX_PLACED)

        last = await recall.last_event(self._parts.history, self._execution, self._scribe.tail, wanted)
        return Exit.of(last.data) if last is not None and last.type == events.EXITED else None

    async def _again(self, trigger: Trigger, told: Entry, after_s: float, failures: int) -> None:
        await self._scribe.move(trigger, self._due_in(after_s, failures), entries=[told])

    def _due_in(self, after_s: float, failures: int) -> Change:
        at = self._parts.clock.now() + timedelta(seconds=after_s)
        return Change(failures=failures + 1, not_before_ms=to_ms(at), unowned=True)

    async def end(
        self, trigger: Trigger, outcome: Outcome, told: list[Entry], delivered: int, snapshot: Snapshot | None = None
    ) -> None:
        """The last append: `told`, receipts of what never arrived, artifacts, the outcome."""
        expired, settled = await self._steering.expire("the execution ended", delivered)
        listed = await Leaving(self._parts, self._execution).kept()
        change = Change(outcome=outcome, unowned=True, delivered=settled if expired else None, snapshot=snapshot)
        crash_point("before_finish_append")
        await self._scribe.move(trigger, change, entries=[*told, *expired, *listed])
        crash_point("after_finish_append")
        said = {"outcome": outcome.kind.value, "reason": outcome.reason.value, "why": outcome.message}
        logger.info("ended", extra=said)

    async def _why_it_stops(self) -> Outcome | None:
        def wanted(event: Event) -> bool:
            return event.type == events.STATE and event.data.get("to") == ExecutionState.STOPPING

        event = await recall.last_event(self._parts.history, self._execution, self._scribe.tail, wanted)
        trigger = event.data.get("trigger") if event is not None else None
        if trigger == Trigger.CANCEL:
            return ending.cancelled(self._stopping.cancel_reason)
        if trigger == Trigger.DEADLINE:
            return ending.timed_out(self._execution.spec.limits.deadline_s)
        if trigger == Trigger.BUDGET:
            return ending.over_budget(self._stopping.over_budget)
        if trigger == Trigger.DISK:
            limit = self._execution.resources.disk_bytes
            return ending.disk_full(await over_limit(self._parts, self._sandbox_id, limit))
        return None


def _is_new(event: Event | Entry) -> bool:
    """A step of the work that no attempt did before. An answer from the record, an intent begun again and a message
    delivered again are none."""
    match event.type:
        case events.USAGE:
            return not event.data.get("replayed")
        case events.MESSAGE_DELIVERED:
            return not event.data.get("redelivered")
        case events.INTENT_DONE | events.INTENT_SETTLED:
            return True
        case _:
            return False


def _unexplained() -> Outcome:
    # Reached only where a history that began anew does not hold its own past.
    return Outcome(OutcomeKind.LOST, Reason.INIT_LOST, "how the harness ended is not known any more")
