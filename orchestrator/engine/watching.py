"""What is known of one attempt now: its record where somebody rang, its sandbox once in a while, and whether anything
happens in it where somebody wants it to sleep when nothing does. As a view, on which `steps` decides.

Writes only what nobody wished for and everybody may see: killed for memory, held back, at rest. Takes no step.
"""

from __future__ import annotations

import asyncio

from orchestrator import events
from orchestrator.engine.approach import Approach
from orchestrator.engine.arrival import Arrival
from orchestrator.engine.cadence import Cadence
from orchestrator.engine.disk import over_limit
from orchestrator.engine.idle import Idleness, Sample
from orchestrator.engine.parts import Parts
from orchestrator.engine.relay import Relay
from orchestrator.engine.scribe import Scribe
from orchestrator.engine.steering import Steering
from orchestrator.engine.steps import View
from orchestrator.engine.stopping import Stopping
from orchestrator.engine.way_out import WayOut
from orchestrator.engine.wishes import Wishes
from orchestrator.errors import Fenced, StoreUnavailable
from orchestrator.events import Entry
from orchestrator.execution import Execution
from orchestrator.harnesses import harness_of
from orchestrator.history import Change, Lease
from orchestrator.lifecycle import ExecutionState
from orchestrator.link import OwnerLink
from orchestrator.sandbox import Running
from orchestrator.workspace import DiskUse

_S = ExecutionState


class Watching:
    """Of one attempt in one epoch. `rung`: the record may have changed. `over_disk`: what its files take, where that is
    more than they may."""

    def __init__(
        self,
        parts: Parts,
        lease: Lease,
        execution: Execution,
        scribe: Scribe,
        rung: asyncio.Event,
        *,
        relay: Relay,
        steering: Steering,
        stopping: Stopping,
        arrival: Arrival,
        approach: Approach,
        wishes: Wishes,
        way_out: WayOut,
        cadence: Cadence,
    ) -> None:
        self._parts = parts
        self._lease = lease
        self._execution_id = execution.id
        self._scribe = scribe
        self._rung = rung
        self._relay = relay
        self._steering = steering
        self._stopping = stopping
        self._arrival = arrival
        self._approach = approach
        self._wishes = wishes
        self._way_out = way_out
        self._cadence = cadence
        now = parts.clock.monotonic()
        self._resumes = harness_of(execution.spec).resumes
        self._idle = Idleness(execution.spec.limits.idle_timeout_s if self._resumes else None, now)
        self._look_at = now + parts.settings.look_s
        self._told_held = False
        self.wants = execution.wants
        self.over_disk: DiskUse | None = None

    async def look(self) -> None:
        """Read the record where somebody rang, and everything once in a while, in case a bell was lost. Raises Fenced,
        Unavailable."""
        now = self._parts.clock.monotonic()
        periodic = now >= self._look_at
        if not self._rung.is_set() and not periodic:
            return
        self._rung.clear()
        try:
            record = await self._parts.executions.get(self._execution_id)
        except StoreUnavailable:
            self._rung.set()
            raise
        if record.epoch != self._lease.epoch:
            raise Fenced("another worker claimed it", epoch=record.epoch)
        self.wants = record.wants
        self._stopping.read(record)
        self._way_out.update(record)
        self._wishes.resources = record.resources
        self._steering.tail = max(self._steering.tail, record.inbox_tail)
        if periodic:
            self._look_at = now + self._parts.settings.look_s
            if self._approach.link is not None and self._scribe.state is _S.RUNNING:
                await self._observe(self._approach.link)

    async def _observe(self, link: OwnerLink) -> None:
        """What nobody rings for: frozen by another's hand, killed for memory, held back. An adopted execution is told
        again what was told before: `kills` counts from its start."""
        status = await self._parts.driver.observe(self._arrival.sandbox_id)
        self._wishes.frozen = isinstance(status, Running) and status.paused
        if isinstance(status, Running) and status.oom_kills > self._relay.reading.oom_kills:
            self._relay.reading.oom_kills = status.oom_kills
            await self._scribe.write([Entry(events.SANDBOX_OOM, {"kills": status.oom_kills})])
        if link.held and not self._told_held:
            await self._scribe.write([Entry(events.SANDBOX_HELD, {"spool_bytes": link.spool_bytes})])
        self._told_held = link.held
        self.over_disk = await over_limit(self._parts, self._arrival.sandbox_id, self._wishes.resources.disk_bytes)

    def touched(self) -> None:
        """Something was done with it: its idle time begins anew."""
        self._idle.touched(self._parts.clock.monotonic())

    async def sample(self) -> None:
        """Whether anything happens in it, where it is time to ask. Raises LinkError, Unavailable."""
        link, now = self._approach.link, self._parts.clock.monotonic()
        look_at = self._idle.look_at(frozen=self._wishes.frozen)
        if look_at is None or link is None or self._scribe.state is not _S.RUNNING:
            return
        if self._steering.tail > self._relay.reading.delivered:
            self._idle.touched(now)
        if now < look_at:
            return
        said = await link.stat()
        usage = await self._parts.driver.usage(self._arrival.sandbox_id)
        sample = Sample(
            src=self._scribe.src,
            processes=int(said["processes"]),
            waiting_bytes=int(said["unread_stdin_bytes"]) + int(said["queued_stdin_bytes"]),
            commands=int(said["execs"]),
            passages=int(said["outlet_connections"]),
            cpu_s=None if usage is None else usage.cpu_s,
            calls=self._way_out.busy,
        )
        self._idle.saw(sample, now)

    async def tell_rest(self) -> None:
        """Have the record say whether it stands still while it is RUNNING. Raises Fenced."""
        frozen = self._wishes.frozen
        if self._scribe.state is _S.RUNNING and self._approach.link is not None and frozen is not self._scribe.frozen:
            await self._scribe.write(change=Change(frozen=frozen))

    def view(self, interrupts_sent: frozenset[str]) -> View:
        """As far as known, at this moment."""
        stopping, link = self._stopping, self._approach.link
        now, frozen = self._parts.clock.monotonic(), self._wishes.frozen
        return View(
            state=self._scribe.state,
            wants=self.wants,
            attempt=self._scribe.attempt,
            reachable=link is not None,
            frozen=frozen or (link is None and self._arrival.frozen),
            exited=self._relay.exit is not None,
            resumes=self._resumes,
            harness_started=self._approach.started,
            deadline_passed=stopping.deadline_passed,
            budget_passed=stopping.budget_passed,
            no_grace=stopping.grace_s <= 0,
            asked_to_stop=stopping.was_asked,
            grace_passed=stopping.grace_passed,
            killed=stopping.killed,
            kill_passed=stopping.kill_passed,
            interrupts_sent=interrupts_sent,
            snapshot_due=self._cadence.due(now, frozen=frozen),
            rests=self._idle.rests(now) and not self._wishes.restless,
            idle=self._idle.sleeps(now),
            disk_passed=self.over_disk is not None,
        )

    def next_at(self) -> float:
        """The first moment anything is to be looked at again, whatever happens before, by the monotonic clock."""
        moments = [self._look_at, *self._stopping.moments(self._scribe.state)]
        if self._scribe.state in (_S.RUNNING, _S.PAUSED) and self._approach.link is not None:
            frozen = self._wishes.frozen
            due = (self._cadence.moment(frozen=frozen), self._idle.look_at(frozen=frozen))
            moments += [moment for moment in due if moment is not None]
        return min(moments)
