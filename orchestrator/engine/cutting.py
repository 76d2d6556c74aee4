"""One consistent cut: the work stands still, all it said is told, its files have a name, and it goes on.

The order is the promise: files have their name before anything says that there is a snapshot, so one exists whole or
not at all; what a crash leaves in between is named by no record, and the sweeper's. Standing still is bounded: past
the limit the work goes on, with whatever was begun thrown away. Does not know when a snapshot is due, nor what the
caller writes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from ulid import ULID

from orchestrator import events
from orchestrator.engine import admission
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.parts import Parts
from orchestrator.engine.scribe import Scribe
from orchestrator.engine.wishes import Wishes
from orchestrator.errors import CarrelError, DiskFull, Fenced, LinkError, LinkLost, NotFound, Resend, Unavailable
from orchestrator.events import Entry
from orchestrator.execution import MIB, Execution, SnapshotWant
from orchestrator.history import Change
from orchestrator.link import OwnerLink
from orchestrator.sandbox import Running
from orchestrator.snapshots import Cut, Snapshot, Why

logger = logging.getLogger(__name__)

#: At the end, where nobody said: a workspace up to this size is copied by a store that has to copy.
AT_END_BYTES: Final = 256 * MIB
_TRIES: Final = 3  # of a snapshot that somebody asked for, where a line or a part gave way
_LOOK_S: Final = 1.0  # at whether it is to end, during a long copy

Hear = Callable[[], Awaitable[object]]
Ends = Callable[[], Awaitable[bool]]


class Overtaken(Exception):
    """The harness has ended, or the execution is to: no cut is to be had here."""


def new_id() -> str:
    return f"snp_{str(ULID()).lower()}"


def created(snapshot: Snapshot) -> Entry:
    """As the history has it."""
    cut = {name: getattr(snapshot.cut, name) for name in ("attempt", "seq", "src", "inbox", "intents")}
    data = {"id": snapshot.id, "why": snapshot.why.value, "name": snapshot.name, "cut": cut, "parent": snapshot.parent}
    return Entry(events.SNAPSHOT_CREATED, data)


def failed(want: SnapshotWant, error: str) -> Entry:
    """As the history has it."""
    return Entry(events.SNAPSHOT_FAILED, {"id": want.id, "why": want.why.value, "error": error})


def reason(failure: BaseException) -> str:
    """For whoever reads why there is none. What is no CarrelError is the filesystem's."""
    return failure.message if isinstance(failure, CarrelError) else str(failure) or type(failure).__name__


class Cutting:
    """Of one attempt in one epoch. `hear`: one batch of frames into the history. `ends`: whether it is to end.
    `exited`: whether the harness has. `held`: whether the lease is surely ours."""

    def __init__(
        self,
        parts: Parts,
        scribe: Scribe,
        execution: Execution,
        wishes: Wishes,
        changed: asyncio.Event,
        *,
        hear: Hear,
        ends: Ends,
        exited: Callable[[], bool],
        held: Callable[[], bool],
    ) -> None:
        assert execution.sandbox_id is not None
        self._parts = parts
        self._scribe = scribe
        self._execution = execution
        self._wishes = wishes
        self._changed = changed
        self._hear = hear
        self._ends = ends
        self._exited = exited
        self._held = held
        self._sandbox_id = execution.sandbox_id
        self._newest = execution.snapshot_id or (execution.spec.origin.snapshot_id if execution.spec.origin else "")
        self._tries: Counter[str] = Counter()
        self._overdue = False

    async def take(self, want: SnapshotWant, link: OwnerLink | None) -> bool:
        """A snapshot of what runs, or is paused, and its receipt; the work goes on. False: there is none. Raises
        Fenced; LinkError, Resend and Unavailable where it is worth another try."""
        stood_still = self._wishes.frozen
        try:
            await admission.check(self._parts.rooms)
            async with self._bounded(stood_still):
                cut = await self._stand_still(link)
                snapshot = await self._keep(want, cut)
        except Fenced:
            raise  # whoever has it now decides what stands still
        except Overtaken:
            await self.go_on(stood_still)
            return False
        except (CarrelError, OSError) as failure:
            await self.go_on(stood_still)
            self._tries[want.id] += 1
            if self._worth_another_try(want, failure):
                raise
            logger.warning("no snapshot", extra={"snapshot": want.id, "why": reason(failure)})
            crash_point("before_snapshot_append")
            await self._scribe.write([failed(want, reason(failure))], Change(done_wants=(want.id,)))
            return False
        await self.go_on(stood_still)
        crash_point("before_snapshot_append")
        await self._scribe.write([created(snapshot)], Change(snapshot=snapshot, done_wants=(want.id,)))
        self._newest = snapshot.id
        crash_point("after_snapshot_append")
        return True

    async def standing_still(
        self, want: SnapshotWant, link: OwnerLink, mail: Callable[[int], Awaitable[bool]]
    ) -> Snapshot:
        """The same, and it stays as it is: for a sleep. `mail`: whether a message waits after the n-th; Overtaken then,
        too. The caller writes the record, or goes on."""
        async with self._bounded(False):
            cut = await self._stand_still(link)
            if await mail(cut.inbox):
                raise Overtaken
            snapshot = await self._keep(want, cut)
            if await mail(cut.inbox):
                raise Overtaken
        return snapshot

    async def at_rest(self, want: SnapshotWant, inbox: int, *, killed: bool = False) -> Snapshot:
        """Of the files of a harness that has ended. `killed`: so has all else; otherwise what it left running is
        stopped where it stands."""
        if not killed:
            status = await self._parts.driver.observe(self._sandbox_id)
            if isinstance(status, Running) and not status.paused:
                with contextlib.suppress(CarrelError):  # nothing of it was enclosed: nothing ever ran
                    await self._parts.driver.pause(self._sandbox_id)
        async with self._bounded(True):
            return await self._keep(want, await self._cut(self._scribe.src, inbox), overtaken=False)

    async def at_end(self, inbox: int, *, killed: bool = False) -> tuple[list[Entry], Snapshot | None]:
        """What is told and kept at the end, by policy. Never in the way of an end: what fails is told."""
        want = SnapshotWant(new_id(), Why.END)
        try:
            if not await self._kept_at_end():
                return [], None
            snapshot = await self.at_rest(want, inbox, killed=killed)
        except Fenced:
            raise
        except NotFound:
            return [], None
        except (CarrelError, OSError) as failure:
            logger.warning("no snapshot at the end", extra={"why": reason(failure)})
            return [failed(want, reason(failure))], None
        return [created(snapshot)], snapshot

    async def go_on(self, stood_still: bool = False) -> None:
        """Thaw, unless it stood still before. Where the engine does not answer, the next step sees that it is
        frozen. Not where the lease lapsed meanwhile: another may be in the middle of its own cut."""
        if stood_still or not self._wishes.frozen or not self._held():
            return
        crash_point("before_thaw")
        try:
            await self._wishes.thaw()
        except Unavailable as away:
            logger.warning("it cannot be thawed now", extra={"why": str(away)})
        crash_point("after_thaw")

    # -- one cut ---------------------------------------------------------------------------------------------------

    async def _stand_still(self, link: OwnerLink | None) -> Cut:
        """Freeze, and every frame up to there in the history. Raises LinkError, Unavailable, Overtaken."""
        if link is None:
            return await self._cut(self._scribe.src, self._known_inbox())
        state = self._scribe.state
        src = await self._wishes.stand_still(link)
        while self._scribe.src < src and link.waiting:
            await self._hear()
        if self._scribe.state is not state or self._exited():
            raise Overtaken
        if self._scribe.src < src:
            raise LinkLost(f"init said {src} frames, and {self._scribe.src} came")
        return await self._cut(src, self._known_inbox())

    def _known_inbox(self) -> int:
        if self._wishes.inbox_read is None:
            raise CarrelError(
                "nobody here knows what it has read: init stands still with it, and another worker paused it;"
                " resume it first"
            )
        return self._wishes.inbox_read

    async def _cut(self, src: int, inbox: int) -> Cut:
        tail = (await self._parts.history.tail(self._execution.id)).tail
        intents = await self._parts.intents.last(self._execution.id)
        return Cut(self._scribe.attempt, tail, src, inbox, intents)

    async def _keep(self, want: SnapshotWant, cut: Cut, *, overtaken: bool = True) -> Snapshot:
        """The files get their name. Raises what SnapshotStore.snapshot does, Overtaken, DiskFull."""
        store, parts = self._parts.workspaces, self._parts
        kind = (await store.facts()).kind
        await self._forget(want.id)
        # Whoever was stopped for longer than its lease must not name what it copied of work that went on.
        taking = store.snapshot(self._sandbox_id, want.id, still=self._held)
        keeping = asyncio.create_task(taking, name="snapshot")
        try:
            while not keeping.done():
                self._changed.clear()
                if self._overdue:
                    raise CarrelError("the copy took too long, and the work stood still")
                if overtaken and await self._ends():
                    raise Overtaken
                ringing = asyncio.create_task(self._changed.wait())
                await asyncio.wait({keeping, ringing}, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                ringing.cancel()
        except BaseException:
            keeping.cancel()  # what its thread still makes is named by no record
            await asyncio.gather(keeping, return_exceptions=True)
            raise
        finally:
            self._changed.set()  # whoever rang meanwhile is heard in the next turn
        keeping.result()
        crash_point("after_snapshot")
        return Snapshot(
            id=want.id,
            execution_id=self._execution.id,
            tenant=self._execution.spec.tenant,
            why=want.why,
            cut=cut,
            sandbox_id=self._sandbox_id,
            host=parts.settings.host,
            store=kind,
            created_at=parts.clock.now(),
            name=want.name,
            labels=want.labels,
            parent=self._newest,
        )

    async def _forget(self, snapshot_id: str) -> None:
        """Files of an earlier try that came to their name and not into the record: they are of another moment."""
        if not any(there == snapshot_id for there, _ in await self._parts.workspaces.snapshots()):
            return
        try:
            await self._parts.snapshots.get(snapshot_id, tenant=self._execution.spec.tenant)
        except NotFound:
            await self._parts.workspaces.drop(snapshot_id)
        else:
            raise Overtaken

    @contextlib.asynccontextmanager
    async def _bounded(self, stood_still: bool) -> AsyncGenerator[None]:
        """Past the limit the work goes on, whatever waits here: nothing is cancelled, since an append may be under way.
        Raises CarrelError then, once that is over."""
        limit_s = self._parts.settings.cut_limit_s
        self._overdue = False

        async def watch() -> None:
            await asyncio.sleep(limit_s)
            self._overdue = True
            self._changed.set()
            await self.go_on(stood_still)

        watching = asyncio.create_task(watch(), name="cut-limit")
        try:
            yield
            if self._overdue:
                raise CarrelError(f"it took longer than {limit_s:g} s, and the work stood still")
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _worth_another_try(self, want: SnapshotWant, failure: Exception) -> bool:
        if want.why is Why.PERIODIC or isinstance(failure, DiskFull):
            return False
        return isinstance(failure, LinkError | Resend | Unavailable) and self._tries[want.id] < _TRIES

    async def _kept_at_end(self) -> bool:
        asked = self._execution.spec.snapshots.at_end
        if asked is not None:
            return asked
        if (await self._parts.workspaces.facts()).instant:
            return True
        return (await self._parts.workspaces.disk(self._sandbox_id)).used_bytes <= AT_END_BYTES
