"""HIBERNATING to HIBERNATED, or back: the cut, its snapshot in the same append, and what to do where there is none.

Nothing that was sent is lost on the way: a message the harness has not read wakes it, before the append as seen here,
after it by the store itself. Does not know why it is to sleep.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator.engine.closing import Closing
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.cutting import Cutting, Overtaken, created, failed, new_id, reason
from orchestrator.engine.parts import Parts
from orchestrator.engine.reading import Exit
from orchestrator.engine.scribe import Scribe
from orchestrator.engine.way_out import WayOut
from orchestrator.errors import CarrelError, Fenced, LinkError, Resend, Unavailable
from orchestrator.events import Entry
from orchestrator.execution import Execution, Outcome, OutcomeKind, Reason, SnapshotWant
from orchestrator.history import Change
from orchestrator.lifecycle import Trigger
from orchestrator.link import OwnerLink
from orchestrator.snapshots import Snapshot, Why

logger = logging.getLogger(__name__)


class Sleeping:
    """Of one attempt in one epoch."""

    def __init__(
        self,
        parts: Parts,
        scribe: Scribe,
        execution: Execution,
        cutting: Cutting,
        closing: Closing,
        way_out: WayOut,
        exited: Callable[[], bool],
    ) -> None:
        assert execution.sandbox_id is not None
        self._parts = parts
        self._scribe = scribe
        self._execution = execution
        self._cutting = cutting
        self._closing = closing
        self._way_out = way_out
        self._exited = exited
        self._sandbox_id = execution.sandbox_id
        self._read = execution.inbox_tail  # as of the last standstill

    async def of_the_living(self, link: OwnerLink) -> None:
        """The harness runs: it stands still from the cut until it is removed. Where there is no cut it goes on,
        RUNNING. Raises Fenced, and what broke on the way where the state is still HIBERNATING: to be asked again."""
        want = SnapshotWant(new_id(), Why.HIBERNATE)
        try:
            snapshot = await self._cutting.standing_still(want, link, self._mail)
        except (Fenced, LinkError, Resend):
            raise
        except Overtaken:
            if not self._exited() and await self._mail(self._read):
                await self._cutting.go_on()
                await self._scribe.move(Trigger.MAIL)
            return  # its exit, or a wish to end it, is what the next step goes by
        except (CarrelError, OSError) as failure:
            logger.warning("it cannot sleep", extra={"why": reason(failure)})
            await self._cutting.go_on()
            await self._scribe.move(Trigger.CUT_FAILED, entries=[failed(want, reason(failure))])
            return
        # A call under way is what the next attempt begins with: its answer is worth waiting for.
        await self._lie_down(snapshot.cut.inbox, [created(snapshot)], snapshot)

    async def of_the_ended(self, end: Exit | None, delivered: int) -> None:
        """The harness asked to sleep and has ended. Its files are here: without a snapshot it sleeps as well."""
        if end is None:
            end = await self._closing.recall_exit()
        inbox = delivered if end is None or end.inbox is None else end.inbox
        if await self._mail(inbox):
            await self._way_out.close(self._parts.settings.drain_grace_s)
            crash_point("before_cut_append")
            await self._scribe.move(Trigger.MAIL_AFTER_EXIT, Change(unowned=True))
            crash_point("after_cut_append")
            return
        want = SnapshotWant(new_id(), Why.HIBERNATE)
        try:
            snapshot = await self._cutting.at_rest(want, inbox)
        except (Fenced, Unavailable):
            raise
        except (CarrelError, OSError) as failure:
            logger.warning("no snapshot before it sleeps", extra={"why": reason(failure)})
            told = [failed(want, reason(failure))]
            if await self._parts.workspaces.holds(self._sandbox_id):
                await self._lie_down(inbox, told, None)
            else:
                lost = "its workspace is gone, and there was no snapshot to be had of it"
                outcome = Outcome(OutcomeKind.LOST, Reason.SANDBOX_LOST, lost)
                await self._closing.end(Trigger.CUT_ABANDONED, outcome, told, delivered)
            return
        await self._lie_down(inbox, [created(snapshot)], snapshot)

    async def _lie_down(self, inbox: int, told: list[Entry], snapshot: Snapshot | None) -> None:
        await self._way_out.close(self._parts.settings.drain_grace_s)
        crash_point("before_cut_append")
        change = Change(unowned=True, seen=inbox, snapshot=snapshot)
        await self._scribe.move(Trigger.CUT, change, entries=told)
        crash_point("after_cut_append")

    async def _mail(self, read: int) -> bool:
        """A message it has not read: it would be woken at once."""
        record = await self._parts.executions.get(self._execution.id)
        self._read = read
        pause = record.wants.pause
        return record.inbox_tail > read or (pause is not None and not pause.paused)
