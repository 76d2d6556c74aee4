"""Claims executions while there is room and runs each one; pokes those whose bell rang.

It ends what it started: cancelled, every run is seen to its end. Does not know what running one means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from orchestrator.engine import lease_keeper
from orchestrator.engine.admission import Admission
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.parts import Parts
from orchestrator.errors import Fenced, StoreUnavailable, Unavailable
from orchestrator.execution import Execution
from orchestrator.executions import Claim
from orchestrator.history import Lease
from orchestrator.logs import bind

logger = logging.getLogger(__name__)

_SHORTEST_WAIT_S: Final = 0.05
_AWAY_FIRST_S: Final = 0.05
_AWAY_LAST_S: Final = 2.0
_ROOM_S: Final = 1.0  # how often a host that is short of room looks whether there is some


class Dispatcher:
    """`run` until drained or cancelled."""

    def __init__(self, parts: Parts, admission: Admission) -> None:
        self._parts = parts
        self._admission = admission
        self._attempts: dict[str, Attempt] = {}
        self._runs: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._draining = asyncio.Event()

    @property
    def owned(self) -> int:
        """How many executions are run here now."""
        return len(self._runs)

    def drain(self) -> None:
        """Claim nothing more; hand over what runs; then `run` returns."""
        self._draining.set()
        for attempt in self._attempts.values():
            attempt.drain()

    async def run(self) -> None:
        """Claim and run. Cancelled: everything is dropped as it is, leases run out. Drained: everything is handed
        over, what cannot be in drain_grace_s is dropped."""
        claiming = asyncio.create_task(self._claim(), name="claim")
        listening = asyncio.create_task(self._listen(), name="listen")
        draining = asyncio.create_task(self._draining.wait(), name="drain")
        try:
            done, _ = await asyncio.wait([claiming, listening, draining], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # the first two end by nothing but an error, and that must be seen
            await _end(claiming, listening)
            self.drain()  # those claimed meanwhile, too
            if self._runs:
                await asyncio.wait(self._runs, timeout=self._parts.settings.drain_grace_s)
        finally:
            await _end(claiming, listening, draining, *self._runs)

    async def _claim(self) -> None:
        settings, away_s = self._parts.settings, _AWAY_FIRST_S
        while True:
            while len(self._runs) >= settings.concurrency:
                self._freed.clear()
                await self._freed.wait()
            short = bool(await self._admission.look())
            asked_at = self._parts.clock.monotonic()
            try:
                claim = await self._parts.executions.claim(
                    settings.worker, settings.host, lease_s=settings.lease_s, adopt_only=short
                )
                if isinstance(claim, Claim):
                    crash_point("after_claim")
                    self._start(claim, asked_at)
                else:
                    longest_s = min(settings.lease_s / 4, settings.claim_interval_s)
                    timeout_s = max(min(claim.wait_s, longest_s), _SHORTEST_WAIT_S)
                    if short:  # a token of the shared bell is for somebody who has room
                        timeout_s = min(timeout_s, _ROOM_S)
                    rung = await self._parts.executions.wait(settings.worker, shared=not short, timeout_s=timeout_s)
                    self._poke(rung)
                away_s = _AWAY_FIRST_S
            except StoreUnavailable as away:
                logger.warning("cannot claim", extra={"why": str(away), "again_in_s": away_s})
                await asyncio.sleep(away_s)
                away_s = min(away_s * 2, _AWAY_LAST_S)

    async def _listen(self) -> None:
        """Our own bell, also when there is no room to claim."""
        settings, away_s = self._parts.settings, _AWAY_FIRST_S
        while True:
            try:
                rung = await self._parts.executions.wait(settings.worker, shared=False, timeout_s=settings.lease_s)
                self._poke(rung)
                away_s = _AWAY_FIRST_S
            except StoreUnavailable:
                await asyncio.sleep(away_s)
                away_s = min(away_s * 2, _AWAY_LAST_S)
                self._poke(["*"])  # what rang meanwhile was not heard

    def _poke(self, rung: Sequence[str]) -> None:
        if "*" in rung:
            rung = list(self._attempts)
        for execution_id in set(rung):
            if attempt := self._attempts.get(execution_id):
                attempt.poke()

    def _start(self, claim: Claim, asked_at: float) -> None:
        run = asyncio.create_task(self._run(claim, asked_at), name=claim.lease.execution_id)
        self._runs.add(run)
        run.add_done_callback(self._ended)

    def _ended(self, run: asyncio.Task[None]) -> None:
        self._runs.discard(run)
        self._freed.set()

    async def _run(self, claim: Claim, asked_at: float) -> None:
        """One claim, to its end. An actor that fails drops its execution: the lease runs out, somebody tries again."""
        bind(execution=claim.lease.execution_id, epoch=claim.lease.epoch)
        try:
            await self._own(claim, lease_keeper.Hold(claim.lease, self._parts.clock, asked_at))
        except Fenced as fenced:
            logger.info("no longer ours", extra={"why": str(fenced)})
        except StoreUnavailable as away:
            logger.warning("could not be handed over; its lease runs out", extra={"why": str(away)})
        except Unavailable as away:
            logger.warning("it cannot begin now; its lease runs out", extra={"why": str(away)})
        except Exception:
            logger.exception("failed; its lease runs out")

    async def _own(self, claim: Claim, hold: lease_keeper.Hold) -> None:
        lease, execution, left_s = claim.lease, claim.execution, claim.deadline_in_s
        logger.info("claimed", extra={"state": execution.state.value, "attempt": execution.attempt})
        while True:
            began_at = self._parts.clock.monotonic()
            attempt = Attempt(self._parts, lease, execution, left_s, hold.held)
            try:
                await self._tend(attempt, hold)
                break
            except lease_keeper.Lapsed:
                logger.warning("the lease lapsed; holding until the store answers")
            await lease_keeper.regain(self._parts.executions, hold)
            execution = await self._read(lease)
            if left_s is not None:
                left_s -= self._parts.clock.monotonic() - began_at
        if not attempt.scribe.giving_up:
            await self._parts.executions.release(lease)
            logger.info("handed over", extra={"state": attempt.scribe.state.value})

    async def _tend(self, attempt: Attempt, hold: lease_keeper.Hold) -> None:
        """The attempt and its lease, until the attempt ends or the lease does. Raises Fenced, Lapsed."""
        execution_id = hold.lease.execution_id
        self._attempts[execution_id] = attempt
        if self._draining.is_set():
            attempt.drain()
        working = asyncio.create_task(attempt.run())
        keeping = asyncio.create_task(lease_keeper.keep(self._parts.executions, hold, lambda: attempt.scribe.giving_up))
        try:
            await asyncio.wait([working, keeping], return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await keeping  # its end is an error, or the work is giving the lease up by itself
            await working
        finally:
            await _end(working, keeping)
            if self._attempts.get(execution_id) is attempt:
                del self._attempts[execution_id]

    async def _read(self, lease: Lease) -> Execution:
        while True:
            try:
                execution = await self._parts.executions.get(lease.execution_id)
                break
            except StoreUnavailable:
                await asyncio.sleep(_AWAY_LAST_S)
        if execution.epoch != lease.epoch or execution.owner != lease.owner:
            raise Fenced("another worker claimed it", epoch=execution.epoch)
        return execution


async def _end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel and see them end; what they failed with was seen elsewhere."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
