"""One process's part in moving executions: dispatcher, sweeper, heartbeat, and the order in which they stop."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Final

from orchestrator import room
from orchestrator.engine.admission import Admission
from orchestrator.engine.dispatcher import Dispatcher
from orchestrator.engine.parts import Parts
from orchestrator.engine.sweeper import Sweeper
from orchestrator.errors import StoreUnavailable

logger = logging.getLogger(__name__)

_LOOK_S: Final = 1.0  # at the disks: they fill while every place is taken and nothing is claimed


class Worker:
    """`run` until `drain` has been called and everything is handed over, or until cancelled."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._admission = Admission(parts.rooms)
        self._dispatcher = Dispatcher(parts, self._admission)
        self._sweeper = Sweeper(parts)

    @property
    def owned(self) -> int:
        """How many executions are run here now."""
        return self._dispatcher.owned

    @property
    def archive_failure(self) -> str:
        """Why the archive took the last thing not, "" = it did, or there is none."""
        return self._sweeper.archive_failure

    def drain(self) -> None:
        """SIGTERM: claim nothing more, finish what is being written, hand over the leases. Sandboxes live on."""
        logger.info("draining", extra={"owned": self.owned})
        self._dispatcher.drain()

    async def run(self) -> None:
        """Returns when drained."""
        logger.info("worker begins", extra={"worker": self._parts.settings.worker, "host": self._parts.settings.host})
        beside = [
            asyncio.create_task(self._heartbeat(), name="heartbeat"),
            asyncio.create_task(self._sweeper.run(), name="sweeper"),
        ]
        try:
            await self._dispatcher.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        logger.info("worker ends", extra={"worker": self._parts.settings.worker})

    async def _heartbeat(self) -> None:
        settings, clock, beat_s = self._parts.settings, self._parts.clock, self._parts.settings.host_lost_after_s / 6
        gateways = self._parts.gateways
        told: dict[str, int] = {}
        while True:
            self._admission.changed.clear()
            short = await self._admission.look()
            counted = {} if gateways is None else gateways.counted()
            more = {name: count - told.get(name, 0) for name, count in counted.items()}
            facts = {"pid": str(os.getpid()), "owned": str(self.owned), "concurrency": str(settings.concurrency)}
            if short:
                facts[room.FACT] = short
            if self.archive_failure:
                facts["archive"] = self.archive_failure
            try:
                await self._parts.executions.heartbeat(settings.host, settings.worker, facts, counted=more)
                told.update(counted)
            except StoreUnavailable as away:
                logger.warning("no heartbeat: the store does not answer", extra={"why": str(away)})
            until = clock.monotonic() + beat_s
            while not self._admission.changed.is_set() and (left_s := until - clock.monotonic()) > 0:
                await asyncio.sleep(min(left_s, _LOOK_S))
                await self._admission.look()
