"""Fulfils what somebody wished of a running sandbox, and writes the receipt: pause, resume, other resources.

A wish that is refused for good has a receipt that says so. Does not know when a wish is due (`steps`).
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import replace

from orchestrator import events
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.parts import Parts
from orchestrator.engine.scribe import Scribe
from orchestrator.engine.steps import Pause, Resize, Resume
from orchestrator.errors import CarrelError, Fenced, LinkError, Resend, Unavailable
from orchestrator.events import Entry
from orchestrator.execution import Execution, ResourcesWant
from orchestrator.history import Change
from orchestrator.lifecycle import Trigger
from orchestrator.link import OwnerLink
from orchestrator.sandbox import Fit, Resized, Running


class Wishes:
    """Of one attempt. `frozen`: as far as known, everything but init stands still; `deaf`: init too.
    `resources`: as they are now. `inbox_read`: the last message it had read when it was last made to stand still here.
    `restless`: it cannot rest, init would with it."""

    def __init__(self, parts: Parts, scribe: Scribe, execution: Execution) -> None:
        assert execution.sandbox_id is not None
        self.frozen = False
        self.deaf = False
        self.restless = False
        self.inbox_read: int | None = None
        self.resources = execution.resources
        self._workspaces = parts.workspaces
        self._driver = parts.driver
        self._scribe = scribe
        self._sandbox_id = execution.sandbox_id

    async def fulfil(self, step: Pause | Resume | Resize, link: OwnerLink | None) -> None:
        """Raises Unavailable, LinkError, Fenced: nothing is settled then, and it may be asked again."""
        match step:
            case Pause(want):
                assert link is not None
                await self._try(want, self._pause(want, link))
            case Resume(want):
                await self._try(want, self._resume(want))
            case Resize(wish):
                await self._try(wish.id, self._resize(wish))

    async def thaw(self) -> None:
        """Let it run, whoever froze it. No receipt: nobody wished for this."""
        await self._driver.unpause(self._sandbox_id)
        self.frozen = self.deaf = False

    async def rest(self) -> None:
        """Freeze it; nobody wished for this, and whatever comes thaws it."""
        await self._driver.pause(self._sandbox_id)
        self.frozen = True
        status = await self._driver.observe(self._sandbox_id)
        if isinstance(status, Running) and status.deaf:
            self.restless = True
            await self.thaw()

    async def settle(self, want: str, why: str) -> None:
        """The receipt of a wish that is fulfilled already (`why` empty), or will not be."""
        told = [Entry(events.WANTED, {"id": want, "refused": why})] if why else []
        await self._scribe.write(told, Change(done_wants=(want,)))

    async def _try(self, want: str, doing: Coroutine[None, None, None]) -> None:
        try:
            await doing
        except (Fenced, Unavailable, LinkError, Resend):
            raise
        except CarrelError as refused:
            await self.settle(want, refused.message)

    async def _pause(self, want: str, link: OwnerLink) -> None:
        await self.stand_still(link)
        await self._scribe.move(Trigger.PAUSE, Change(done_wants=(want,)))

    async def stand_still(self, link: OwnerLink) -> int:
        """Freeze it; the last frame it has said by then, on disk. Raises LinkError, Unavailable: it may be frozen."""
        said = await link.quiesce()  # before it too: where init freezes with the rest, this is the last it can say
        crash_point("before_freeze")
        self.frozen = True  # from here on somebody has to thaw it, whatever the engine answers
        await self._driver.pause(self._sandbox_id)
        crash_point("after_freeze")
        status = await self._driver.observe(self._sandbox_id)
        self.deaf = isinstance(status, Running) and status.deaf
        if not self.deaf:
            said = await link.quiesce()
        crash_point("after_quiesce")
        self.inbox_read = int(said.fields["inbox"])
        return int(said.fields["src"])

    async def _resume(self, want: str) -> None:
        await self.thaw()
        await self._scribe.move(Trigger.RESUME, Change(done_wants=(want,)))

    async def _resize(self, wish: ResourcesWant) -> None:
        asked = {name: getattr(wish, name) for name in ("cpus", "memory_bytes", "pids")}
        given = {name: value for name, value in asked.items() if value is not None}
        disk = {} if wish.disk_bytes is None else {"disk_bytes": wish.disk_bytes}
        wanted = replace(self.resources, **given)
        resized = await self._driver.resize(self._sandbox_id, wanted) if given or not disk else Resized(Fit.APPLIED)
        applied = resized.fit is Fit.APPLIED
        if applied and wish.disk_bytes is not None:
            if (await self._workspaces.facts()).limits_disk:  # another store's limit is measured (`disk`)
                await self._workspaces.limit(self._sandbox_id, wish.disk_bytes)
            wanted = replace(wanted, disk_bytes=wish.disk_bytes)
        measured = resized.measured
        data = {
            "id": wish.id,
            "result": resized.fit.value,
            **given,
            **disk,
            "measured": None if measured is None else {name: getattr(measured, name) for name in asked},
            "detail": resized.detail,
        }
        change = Change(done_wants=(wish.id,), resources=wanted if applied else None)
        await self._scribe.write([Entry(events.SANDBOX_RESIZED, data)], change)
        if applied:
            self.resources = wanted
