"""From QUEUED to STARTING: the next attempt gets its number, its sandbox's name and what it takes over.

All of it is in the record and the history before anything is made: whoever comes after a crash finds the name of what
may exist. Makes nothing itself.
"""

from __future__ import annotations

from dataclasses import replace

from ulid import ULID

from orchestrator import events
from orchestrator.engine import recall
from orchestrator.engine.arrival import Placement
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.environment import inbox_base
from orchestrator.engine.parts import Parts
from orchestrator.engine.reading import Exit
from orchestrator.engine.scribe import Scribe
from orchestrator.events import Entry, Event
from orchestrator.execution import Execution
from orchestrator.harnesses import harness_of
from orchestrator.history import Change
from orchestrator.lifecycle import ExecutionState, Trigger


async def place(parts: Parts, scribe: Scribe, execution: Execution) -> tuple[Execution, Placement]:
    """Write the next attempt; answers the record as it is then. Raises Fenced."""
    attempt, sandbox_id = execution.attempt + 1, f"sbx_{str(ULID()).lower()}"
    placement = await _take_over(parts, replace(execution, attempt=attempt))
    data = {
        "sandbox_id": sandbox_id,
        "host": parts.settings.host,
        "inherit": placement.inherit,
        "inbox_base": placement.inbox_base,
        "resumed": placement.resumed,
    }
    change = Change(attempt=attempt, sandbox_id=sandbox_id, host=parts.settings.host)
    done = await scribe.move(Trigger.CLAIMED, change, entries=[Entry(events.SANDBOX_PLACED, data)])
    crash_point("after_place")
    placed = replace(
        execution,
        state=done.state,
        attempt=attempt,
        sandbox_id=sandbox_id,
        host=parts.settings.host,
        src=0,
        tail=done.tail,
    )
    return placed, placement


async def placement_of(parts: Parts, execution: Execution, tail: int) -> Placement:
    """What was written when this attempt was placed, by a worker that may be gone."""

    def wanted(event: Event) -> bool:
        return event.type == events.SANDBOX_PLACED and event.data.get("sandbox_id") == execution.sandbox_id

    placed = await recall.last_event(parts.history, execution, tail, wanted)
    if placed is None:  # a history that begins with a gap
        return Placement()
    said = placed.data
    return Placement(said.get("inherit"), int(said.get("inbox_base", 0)), bool(said.get("resumed")))


async def _take_over(parts: Parts, execution: Execution) -> Placement:
    """`execution.attempt` is the new one, all else is as the last attempt left it."""
    before = execution.sandbox_id
    if before is None or not await parts.workspaces.holds(before):
        return Placement()
    cut = await _cut_of_last_attempt(parts, execution)
    base = inbox_base(execution, resumes=harness_of(execution.spec).resumes, cut=cut)
    return Placement(inherit=before, inbox_base=base, resumed=execution.started_at is not None)


async def _cut_of_last_attempt(parts: Parts, execution: Execution) -> int | None:
    """How far into the inbox a harness had read that asked to sleep; None when the last one ended otherwise."""
    if execution.started_at is None:
        return None

    def ended_an_attempt(event: Event) -> bool:
        trigger, came_from = event.data.get("trigger"), event.data.get("from")
        if event.type != events.STATE or came_from == ExecutionState.STARTING:
            return False
        return trigger in (Trigger.CUT, Trigger.SANDBOX_LOST, Trigger.MAIL_AFTER_EXIT)

    last = await recall.last_event(parts.history, execution, execution.tail, ended_an_attempt)
    if last is None or last.data.get("trigger") == Trigger.SANDBOX_LOST:
        return None
    exited = await recall.last_event(parts.history, execution, last.seq, lambda event: event.type == events.EXITED)
    end = Exit.of(exited.data) if exited is not None else Exit()
    return execution.delivered if end.inbox is None else end.inbox
