"""The way to a greeted init: slot, sandbox, line, gate, start. Every part may be there already; asking again is safe.

Three answers only: a line, SandboxGone (a positive loss), or an error that says why this sandbox cannot be started.
*Unknown* is none of them: it waits and asks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.environment import start_of
from orchestrator.engine.parts import Parts
from orchestrator.engine.way_out import WayOut
from orchestrator.errors import (
    BadInput,
    CarrelError,
    DiskFull,
    EngineUnavailable,
    Fenced,
    ImageMissing,
    Infeasible,
    LinkError,
    LinkLost,
    LinkRefused,
    NotFound,
    Unavailable,
)
from orchestrator.execution import GIB, Execution
from orchestrator.harnesses import harness_of
from orchestrator.history import Lease
from orchestrator.link import DeadSpool, OwnerLink, another_owns
from orchestrator.retry import Cause
from orchestrator.sandbox import Absent, Created, Ended, Running, SandboxSpec, Status, Unknown
from orchestrator.workspace import Seed, UnpackLimits

logger = logging.getLogger(__name__)

_FIRST_WAIT_S: Final = 0.02
_LAST_WAIT_S: Final = 1.0
#: Of an archive that somebody brings: zeros pack to nothing, so only the sum counts.
_BROUGHT_BYTES: Final = 64 * GIB
_BROUGHT_ENTRIES: Final = 2_000_000
_BROUGHT_RATIO: Final = 1 << 30


class SandboxGone(Exception):
    """This sandbox will never be reached again."""

    def __init__(self, cause: Cause, detail: str, *, with_files: bool = False) -> None:
        """`with_files`: and nothing of its work is left to go on from."""
        super().__init__(detail)
        self.cause = cause
        self.detail = detail
        self.with_files = with_files


@dataclass(frozen=True, slots=True)
class Placement:
    """What a new attempt takes over: an earlier sandbox's files or those of a snapshot, and how much of the inbox.
    `archive`: the blob it begins with, that somebody brought. `nothing`: why there is nothing to begin with, though
    there has to be."""

    inherit: str | None = None
    inbox_base: int = 0
    resumed: bool = False
    snapshot: str | None = None
    nothing: str = ""
    archive: str = ""


@dataclass(frozen=True, slots=True)
class Arrived:
    """A line. `frozen`: as the box was found. `started`: the harness was started, or asked to be just now; then with
    `inbox_base`, which init's greeting, older than that, does not know of."""

    link: OwnerLink
    frozen: bool
    started: bool
    inbox_base: int = 0


class Arrival:
    """For one attempt of one execution, which `sandbox_id` of its record names."""

    def __init__(
        self, parts: Parts, lease: Lease, execution: Execution, changed: asyncio.Event, way_out: WayOut
    ) -> None:
        assert execution.sandbox_id is not None
        self._parts = parts
        self._lease = lease
        self._execution = execution
        self._changed = changed
        self._way_out = way_out
        self._answered = False  # the last time somebody took our call, were it to hang up
        self.sandbox_id = execution.sandbox_id
        self.frozen = False  # as it was last seen from outside, whether init answers or not
        self.spool = DeadSpool(parts.workspaces.slot(execution.sandbox_id).spool)

    async def begin(self, placement: Placement, after: int) -> Arrived:
        """To an init whose harness was started, by this call or before. Raises SandboxGone; Fenced; and what
        `SnapshotStore.prepare`, `begin` and `SandboxDriver.ensure` say no with."""
        if placement.nothing:
            if self._execution.started_at is None:
                raise BadInput(placement.nothing, field="snapshot", remedy="fork from another one")
            raise SandboxGone(Cause.SANDBOX_LOST, placement.nothing, with_files=True)
        wait_s = _FIRST_WAIT_S
        while True:
            if await asyncio.to_thread(self.spool.started):
                return await self.reach(after)
            status = await self._known_status()
            if isinstance(status, Ended):
                raise SandboxGone(Cause.START_FAILED, f"it ended before the harness began: {_words(status)}")
            await self._make(placement)
            crash_point("after_ensure")
            await self._way_out.open()
            arrived = await self._try_to_connect(after, None)
            if arrived is None:
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _LAST_WAIT_S)
                continue
            link = arrived.link
            if not link.hello.started:
                try:
                    fields, task = start_of(
                        self._execution,
                        resumed=placement.resumed,
                        inbox_base=placement.inbox_base,
                        task_file=self._parts.settings.task_file,
                        spool_limit_bytes=self._parts.settings.spool_limit_bytes,
                        gateway=self._way_out.environment(),
                    )
                    await link.start(fields, task)
                except LinkError as broken:
                    await link.close()
                    self._check_ours(broken)
                    continue
                except BaseException:
                    await link.close()
                    raise
                crash_point("after_start")
                return replace(arrived, started=True, inbox_base=placement.inbox_base)
            return replace(arrived, started=True)

    async def reach(self, after: int, *, unstarted_too: bool = False) -> Arrived:
        """To an init that was reached before, by whomever. `unstarted_too`: one whose harness never began is welcome.
        Raises SandboxGone, Fenced."""
        wait_s = _FIRST_WAIT_S
        deaf_since: float | None = None
        while True:
            status = await self._known_status()
            if isinstance(status, Running):
                await self._way_out.open()
            if isinstance(status, Absent):
                raise SandboxGone(Cause.SANDBOX_LOST, "the sandbox is not there any more")
            if isinstance(status, Created):
                raise SandboxGone(Cause.INIT_LOST, "the sandbox was made anew by somebody else and never ran")
            if isinstance(status, Ended):
                raise SandboxGone(Cause.INIT_LOST, f"the sandbox ended: {_words(status)}")
            if status.paused and not self.frozen:
                self.frozen = True
                self._changed.set()
            arrived = None if status.deaf else await self._try_to_connect(after, status)
            if arrived is not None:
                hello = arrived.link.hello
                if hello.started or unstarted_too:
                    return arrived
                await arrived.link.close()
                raise SandboxGone(Cause.INIT_LOST, "the sandbox was made anew by somebody else: its spool is empty")
            now = self._parts.clock.monotonic()
            if status.paused or self._answered or deaf_since is None:
                deaf_since = now
                if status.paused and unstarted_too:  # it is to end: whoever froze init as well, it has to hear that
                    await self._thaw()
            elif now - deaf_since > self._parts.settings.init_lost_after_s:
                raise SandboxGone(
                    Cause.INIT_LOST, f"the sandbox runs but its init was deaf for {now - deaf_since:.0f} s"
                )
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LAST_WAIT_S)

    async def _thaw(self) -> None:
        try:
            await self._parts.driver.unpause(self.sandbox_id)
        except Unavailable as failure:
            logger.warning("it cannot be thawed", extra={"why": str(failure)})

    async def _known_status(self) -> Running | Created | Ended | Absent:
        wait_s = _FIRST_WAIT_S
        while True:
            status = await self._parts.driver.observe(self.sandbox_id)
            if not isinstance(status, Unknown):
                return status
            logger.warning("the engine does not say; waiting", extra={"why": status.error, "again_in_s": wait_s})
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LAST_WAIT_S)

    async def _make(self, placement: Placement) -> None:
        """Slot and sandbox. While the engine does not answer: again and again."""
        parts, spec, settings = self._parts, self._execution.spec, self._parts.settings
        seeds = [Seed(file.path, self._content(file.path, file.sha256), file.mode) for file in spec.files]
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                if placement.inherit is not None:
                    # Its attempt is over, as the record says; it must not write into files that are another's now.
                    await parts.driver.remove(placement.inherit)
                # A store that cannot bound refuses a limit; there it is measured (`disk`).
                bounds = (await parts.workspaces.facts()).limits_disk
                disk_bytes = self._execution.resources.disk_bytes if bounds else 0
                if placement.archive:
                    brought = await self._brought(placement.archive)
                    slot = await parts.workspaces.begin(self.sandbox_id, brought, disk_bytes=disk_bytes)
                    await parts.workspaces.drop(brought)
                elif placement.snapshot is not None:
                    slot = await parts.workspaces.begin(self.sandbox_id, placement.snapshot, disk_bytes=disk_bytes)
                else:
                    slot = await parts.workspaces.prepare(
                        self.sandbox_id, inherit=placement.inherit, seeds=seeds, disk_bytes=disk_bytes
                    )
                crash_point("after_prepare")
                image = spec.image or harness_of(spec).image or settings.image
                box = SandboxSpec(image, self._execution.resources, slot.path, settings.runtime)
                await parts.driver.ensure(box, self.sandbox_id)
                return
            except EngineUnavailable as away:
                logger.warning("the engine does not answer; waiting", extra={"why": str(away), "again_in_s": wait_s})
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LAST_WAIT_S)

    async def _brought(self, sha256: str) -> str:
        """An archive somebody uploaded, as a snapshot no record names, for as long as this begins. Raises BadInput,
        TooLarge."""
        blob, brought = self._content("the archive", sha256), f"snp_{self.sandbox_id.removeprefix('sbx_')}"
        limits = UnpackLimits(self._execution.resources.disk_bytes or _BROUGHT_BYTES, _BROUGHT_ENTRIES, _BROUGHT_RATIO)
        await self._parts.workspaces.load(brought, [_pieces(blob)], limits=limits)
        return brought

    def _content(self, what: str, sha256: str) -> Path:
        """Raises BadInput, whose message has the remedy: an outcome keeps nothing else of an error."""
        try:
            return self._parts.blobs.path(sha256)
        except NotFound as gone:
            remedy = (
                "upload it again; where api and workers have different data directories, let them share its `blobs/`"
            )
            raise BadInput(
                f"the content of {what} is not on host {self._parts.settings.host} (no blob {sha256}): {remedy}",
                field="files",
                remedy=remedy,
            ) from gone

    async def _try_to_connect(self, after: int, status: Running | None) -> Arrived | None:
        """A greeted line with the gate open; None when nobody answers just now."""
        driver = self._parts.driver
        self._answered = False
        try:
            duplex = await driver.connect(self.sandbox_id)
            self._answered = True
            link = await OwnerLink.open(duplex, epoch=self._lease.epoch, after=after, changed=self._changed)
        except LinkLost as lost:
            self._answered = self._answered and not lost.data.get("silent")
            logger.info("init does not answer", extra={"why": str(lost)})
            return None
        except EngineUnavailable as away:
            logger.warning("the engine does not answer", extra={"why": str(away)})
            return None
        except LinkRefused as refused:
            self._check_ours(refused)
            # Another protocol, or no room for one more line: not deaf, so not lost; a worker it understands may come.
            logger.warning("init refuses us", extra={"why": str(refused)})
            return None
        try:
            crash_point("after_connect")
            if link.hello.state == "lost":
                raise SandboxGone(Cause.INIT_LOST, "the sandbox was restarted from outside; its harness is gone")
            if not link.hello.gate_open:
                enclosed = await driver.enclose(self.sandbox_id, link.hello.spawner_pid)
                await link.open_gate(cgroup=enclosed)
                crash_point("after_gate")
        except (LinkError, EngineUnavailable) as failure:
            logger.info("init was lost again", extra={"why": str(failure)})
            await link.close()
            self._check_ours(failure)
            return None
        except BaseException:
            await link.close()
            raise
        return Arrived(link, status is not None and status.paused, link.hello.started)

    def _check_ours(self, failure: CarrelError) -> None:
        """Raises Fenced where init let the line go for a later owner's. For another of this epoch: it is opened anew,
        wherever on the way it was replaced."""
        if isinstance(failure, LinkRefused) and another_owns(failure, self._lease.epoch):
            raise Fenced(f"init has a later owner: {failure}", epoch=0)


def _pieces(blob: Path) -> Iterator[bytes]:
    with blob.open("rb") as file:
        while piece := file.read(1 << 20):
            yield piece


def cause_of(error: CarrelError) -> Cause:
    """Why a sandbox could not be started, for `retry.decide`."""
    if isinstance(error, ImageMissing):
        return Cause.IMAGE_MISSING
    if isinstance(error, Infeasible):
        return Cause.INFEASIBLE
    if isinstance(error, BadInput):
        return Cause.BAD_START
    if isinstance(error, DiskFull):
        return Cause.DISK_FULL
    return Cause.START_FAILED


def _words(status: Status) -> str:
    if not isinstance(status, Ended):
        return ""
    oom = ", out of memory" if status.oom else ""
    return f"exit {status.exit_code}{oom}" + (f" ({status.detail})" if status.detail else "")
