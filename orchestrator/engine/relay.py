"""Frames into the history, exactly once, and their acknowledgement to init.

While one append is on its way the line reads on, so the next batch is as large as the store is slow: nothing waits
when there is little, and much goes in few calls. Knows which transition belongs to a frame; not what follows from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.ending import EXIT_WAITING
from orchestrator.engine.reading import BATCH_BYTES, BATCH_ENTRIES, Batch, Exit, Reading
from orchestrator.engine.scribe import FIRST_WAIT_S, LAST_WAIT_S, Scribe
from orchestrator.errors import LinkError, StoreUnavailable
from orchestrator.events import ARTIFACT, Entry
from orchestrator.execution import Execution
from orchestrator.history import Change, History, Message, Spooled
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.link import Frame, OwnerLink

logger = logging.getLogger(__name__)

_INBOX_PAGE: Final = 1000

Outlived = Callable[[Exit, Sequence[Entry]], Awaitable[tuple[Entry, Change] | None]]
Named = Callable[[Sequence[Entry]], Awaitable[None]]


class Relay:
    """Of one attempt in one epoch. `exit` is the harness's end, once it has been written. `outlived` says of the end of
    a running one, and of what is written with it, what is told and changed where another attempt follows, None where
    this is the end. `named` is told of artifacts before the history says so."""

    def __init__(
        self, history: History, scribe: Scribe, execution: Execution, outlived: Outlived, named: Named
    ) -> None:
        self.reading = Reading(execution)
        self.exit: Exit | None = None
        self.started = False  # seen by this relay
        self.failures = execution.failures
        self._execution_id = execution.id
        self._history = history
        self._scribe = scribe
        self._outlived = outlived
        self._named = named

    async def pump(self, link: OwnerLink) -> Batch | None:
        """One batch from a living init, written and acknowledged. None when there was nothing."""
        frames = deque(link.take(max_frames=BATCH_ENTRIES, max_bytes=BATCH_BYTES))
        batch = None
        while frames:
            batch = await self.write(frames)
            try:
                await link.ack(self._scribe.src)
            except LinkError:
                return batch  # the line says so itself; what is written is written
            crash_point("after_relay_ack")
        return batch

    async def write(self, frames: deque[Frame]) -> Batch:
        """One batch off the left of `frames` into the history, with the transition that belongs to it."""
        if self.reading.unresolved(frames):
            await self._learn_ids()
        batch = self.reading.read(frames)
        if batch.last_src < batch.first_src:
            return batch
        if artifacts := [entry for entry in batch.entries if entry.type == ARTIFACT]:
            await self._named(artifacts)
        spooled = Spooled(batch.first_src, batch.last_src, batch.entries)
        change: Change | None = Change(
            delivered=batch.delivered,
            consumed=batch.consumed,
            output_mode=batch.output_mode,
            done_wants=tuple(batch.interrupts),
        )
        if batch.progress and self.failures:
            self.failures = 0
            change = replace(change or Change(), failures=0)
        if batch.started and self._scribe.state is ExecutionState.STARTING:
            crash_point("before_started_append")
            await self._scribe.move(Trigger.HARNESS_STARTED, replace(change or Change(), started=True), spooled=spooled)
            crash_point("after_started_append")
        elif batch.exit is not None:
            crash_point("before_exit_append")
            await self._write_exit(batch.exit, change or Change(), spooled)
            crash_point("after_exit_append")
        else:
            crash_point("before_relay_append")
            await self._scribe.write(change=None if change == Change() else change, spooled=spooled)
            crash_point("after_relay_append")
        self.started = self.started or batch.started
        return batch

    async def _write_exit(self, end: Exit, change: Change, spooled: Spooled) -> None:
        if self._scribe.state is ExecutionState.PAUSED:
            # Killed while frozen: only what runs can exit, as the table has it.
            await self._scribe.move(Trigger.RESUME)
        if self._scribe.state is ExecutionState.RUNNING:
            if (follows := await self._outlived(end, spooled.entries)) is not None:
                # One append: a crash between the exit and what follows would leave an exit that means an end.
                lost, again = follows
                merged = replace(
                    change, failures=again.failures, not_before_ms=again.not_before_ms, unowned=again.unowned
                )
                await self._scribe.move(Trigger.SANDBOX_LOST, merged, entries=[lost], spooled=spooled)
            else:
                await self._scribe.move(trigger_of(end), change, spooled=spooled)
        else:  # it was being stopped: that was the first cause
            await self._scribe.write(change=None if change == Change() else change, spooled=spooled)
        self.exit = end

    async def _learn_ids(self) -> None:
        """Message ids an adopted harness may still acknowledge."""
        reading = self.reading
        after = reading.consumed
        while after < reading.delivered:
            messages = await self._messages(after)
            if not messages:
                break
            for message in messages:
                reading.know(message.id, message.n)
            after = messages[-1].n
        reading.informed = True

    async def _messages(self, after: int) -> list[Message]:
        """Again and again while the store does not answer: the frames that need them are off the line already, and
        init sends none twice."""
        wait_s = FIRST_WAIT_S
        while True:
            try:
                return await self._history.inbox(self._execution_id, after, limit=_INBOX_PAGE)
            except StoreUnavailable as away:
                logger.warning("the store does not answer; holding", extra={"why": str(away), "again_in_s": wait_s})
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, LAST_WAIT_S)


def trigger_of(end: Exit) -> Trigger:
    """What a running execution's exit means for its state."""
    if end.oom:
        return Trigger.OOM
    if end.exit_code == EXIT_WAITING:
        return Trigger.EXIT_WAITING
    return Trigger.EXITED
