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
from orchestrator.engine.environment import inbox_base, stdin_of
from orchestrator.engine.parts import Parts
from orchestrator.engine.reading import Exit
from orchestrator.engine.restoring import newest_whole
from orchestrator.engine.scribe import Scribe
from orchestrator.events import Entry, Event
from orchestrator.execution import Execution
from orchestrator.harnesses import harness_of
from orchestrator.history import Change
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.snapshots import Why


async def place(parts: Parts, scribe: Scribe, execution: Execution) -> tuple[Execution, Placement]:
    """Write the next attempt; answers the record as it is then. Raises Fenced."""
    attempt, sandbox_id = execution.attempt + 1, f"sbx_{str(ULID()).lower()}"
    placement, told = await _take_over(parts, replace(execution, attempt=attempt))
    data = {
        "sandbox_id": sandbox_id,
        "host": parts.settings.host,
        "inherit": placement.inherit,
        "inbox_base": placement.inbox_base,
        "resumed": placement.resumed,
        **({"snapshot": placement.snapshot} if placement.snapshot else {}),
        **({"nothing": placement.nothing} if placement.nothing else {}),
        **({"archive": placement.archive} if placement.archive else {}),
    }
    entries = [*told, Entry(events.SANDBOX_PLACED, data)]
    if placement.snapshot:
        restored = {"id": placement.snapshot, "attempt": attempt, "inbox_base": placement.inbox_base}
        entries.append(Entry(events.SNAPSHOT_RESTORED, restored))
    change = Change(attempt=attempt, sandbox_id=sandbox_id, host=parts.settings.host)
    done = await scribe.move(Trigger.CLAIMED, change, entries=entries)
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

    placed = await _placed(parts, execution, tail)
    if placed is None:  # a history that begins with a gap
        return Placement()
    said = placed.data
    return Placement(
        said.get("inherit"),
        int(said.get("inbox_base", 0)),
        bool(said.get("resumed")),
        said.get("snapshot"),
        str(said.get("nothing", "")),
        str(said.get("archive", "")),
    )


async def _placed(parts: Parts, execution: Execution, tail: int) -> Event | None:
    def wanted(event: Event) -> bool:
        return event.type == events.SANDBOX_PLACED and event.data.get("sandbox_id") == execution.sandbox_id

    return await recall.last_event(parts.history, execution, tail, wanted)


async def _take_over(parts: Parts, execution: Execution) -> tuple[Placement, list[Entry]]:
    """`execution.attempt` is the new one, all else is as the last attempt left it. And what is told of it."""
    before, origin = execution.sandbox_id, execution.spec.origin
    ran = execution.started_at is not None
    if before is not None and await parts.workspaces.holds(before):
        base = await _inbox_base(parts, execution)
        return Placement(inherit=before, inbox_base=base, resumed=ran or origin is not None), []
    if not ran and origin is None:
        archive = execution.spec.archive
        return Placement(resumed=bool(archive), archive=archive), []
    snapshot, told = await newest_whole(parts, execution)
    if snapshot is not None:
        # A harness that begins anew gets its messages anew; a fork has an inbox of its own.
        goes_on = harness_of(execution.spec).resumes or snapshot.why is Why.HIBERNATE
        base = snapshot.cut.inbox if goes_on and snapshot.execution_id == execution.id else 0
        return Placement(inbox_base=base, resumed=True, snapshot=snapshot.id), told
    if ran and execution.spec.retry.on_lost == "retry":
        return Placement(), told
    place = f"host {parts.settings.host}"
    if origin is not None and not ran:
        return Placement(nothing=f"the snapshot {origin.snapshot_id} it is to begin from is not whole on {place}"), told
    return Placement(nothing=f"neither its workspace nor a whole snapshot of it is on {place}"), told


async def _inbox_base(parts: Parts, execution: Execution) -> int:
    """In the files of its last attempt."""
    cut = await _cut_of_last_attempt(parts, execution)
    resumes = harness_of(execution.spec).resumes
    if cut is None and resumes and execution.delivered:
        placed = await _placed(parts, execution, execution.tail)
        if placed is not None and placed.data.get("snapshot"):
            return await _reached(parts, execution, placed)
    return inbox_base(execution, resumes=resumes, cut=cut)


async def _reached(parts: Parts, execution: Execution, placed: Event) -> int:
    """How far the last attempt came, which began behind what the record has: its cursors only ever rise."""
    receipt = events.MESSAGE_CONSUMED if stdin_of(execution) == "jsonl" else events.MESSAGE_DELIVERED

    def wanted(event: Event) -> bool:
        return event.seq == placed.seq or event.type == receipt

    last = await recall.last_event(parts.history, execution, execution.tail, wanted)
    return int(last.data["n"] if last is not None and last.type == receipt else placed.data.get("inbox_base", 0))


async def _cut_of_last_attempt(parts: Parts, execution: Execution) -> int | None:
    """How far into the inbox a harness had read that was put to sleep, or asked to; None when the last attempt ended
    otherwise."""
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

    def told_how_far(event: Event) -> bool:
        if event.type == events.SNAPSHOT_CREATED:
            return event.data.get("why") == Why.HIBERNATE
        return event.type == events.EXITED

    told = await recall.last_event(parts.history, execution, last.seq, told_how_far)
    if told is None:
        return execution.delivered
    read = told.data["cut"]["inbox"] if told.type == events.SNAPSHOT_CREATED else Exit.of(told.data).inbox
    return execution.delivered if read is None else int(read)
