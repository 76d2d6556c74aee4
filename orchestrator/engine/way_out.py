"""The gateway of one attempt in one epoch: kept open, told what the record says, closed at the end.

What it has for the history is written by the attempt's own pen, in the attempt's own loop. Work never waits for it: a
gateway that cannot be opened is tried again beside the work, and init's outlet holds requests until it is there. Knows
nothing of what passes through it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from orchestrator.engine.parts import Parts
from orchestrator.engine.scribe import Scribe
from orchestrator.errors import CarrelError, Fenced
from orchestrator.events import Entry
from orchestrator.execution import Execution
from orchestrator.gateways import Gateway
from orchestrator.history import Lease

logger = logging.getLogger(__name__)

OPEN_LIMIT_S: Final = 1.0  # so long a start waits for it to listen; then it goes on without
CLOSE_LIMIT_S: Final = 15.0  # beyond its grace, before it is left behind as it is
_FIRST_WAIT_S: Final = 0.05
_LAST_WAIT_S: Final = 2.0
_AT_ONCE: Final = 256


class WayOut:
    """`changed` is set whenever there is something to write, or an end of it to see."""

    def __init__(
        self,
        parts: Parts,
        lease: Lease,
        execution: Execution,
        scribe: Scribe,
        held: Callable[[], bool],
        changed: asyncio.Event,
    ) -> None:
        assert execution.sandbox_id is not None
        self._gateways = parts.gateways
        self._at = parts.workspaces.slot(execution.sandbox_id).gateway
        self._lease = lease
        self._execution = execution
        self._scribe = scribe
        self._held = held
        self._changed = changed
        self._told: deque[tuple[Entry, asyncio.Future[None]]] = deque()
        self._opening: asyncio.Task[Gateway] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._over = self._gateways is None

    def environment(self) -> Mapping[str, str] | None:
        """What programs inside need to find it; None = there is none."""
        return None if self._gateways is None else self._gateways.environment(self._execution)

    async def open(self) -> None:
        """Listen, if it does not; returns when it does, or after OPEN_LIMIT_S, whichever is first. The slot's `ctl` is
        there. What ends it for good is raised by `write`."""
        if self._opening is None and self._closing is None and not self._over:
            self._opening = asyncio.create_task(self._open(), name="way-out")
            self._opening.add_done_callback(lambda _: self._changed.set())
        if self._opening is not None:
            await asyncio.wait([self._opening], timeout=OPEN_LIMIT_S)

    async def _open(self) -> Gateway:
        assert self._gateways is not None
        wait_s = _FIRST_WAIT_S
        while True:
            known = self._execution
            try:
                gateway = await self._gateways.open(self._lease, known, self._at, tell=self._tell, held=self._held)
            except Fenced:
                raise
            except (CarrelError, OSError) as failure:
                logger.warning("no way out yet", extra={"why": str(failure), "again_in_s": wait_s})
            else:
                if self._execution is not known:  # read again while it was being opened
                    gateway.update(self._execution)
                return gateway
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _LAST_WAIT_S)

    @property
    def _gateway(self) -> Gateway | None:
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return None
        return opening.result()

    @property
    def busy(self) -> bool:
        """A model call is under way."""
        gateway = self._gateway
        return gateway is not None and gateway.busy

    def update(self, execution: Execution) -> None:
        """The record was read again."""
        self._execution = execution
        if (gateway := self._gateway) is not None:
            gateway.update(execution)

    async def _tell(self, entry: Entry) -> None:
        if self._over:
            raise Fenced("this attempt is over, or another worker's", epoch=0)
        written = asyncio.get_running_loop().create_future()
        self._told.append((entry, written))
        self._changed.set()
        await written

    async def write(self) -> None:
        """What it had to tell, into the history. Raises Fenced; and what ended the opening for good."""
        if self._opening is not None and self._opening.done() and not self._opening.cancelled():
            self._opening.result()
        while self._told:
            batch = [self._told.popleft() for _ in range(min(len(self._told), _AT_ONCE))]
            try:
                await self._scribe.write([entry for entry, _ in batch])
            except BaseException as failure:
                for _, written in batch:
                    if not written.done():
                        written.set_exception(_told_as(failure))
                raise
            for _, written in batch:
                if not written.done():
                    written.set_result(None)

    def leave(self, grace_s: float) -> bool:
        """Take nothing new; True once the calls under way are over, or have had their grace. To be asked again
        whenever `changed` is set; `write` must go on meanwhile."""
        if self._over:
            return True
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(grace_s), name="way-out closes")
            self._closing.add_done_callback(lambda _: self._changed.set())
        return self._closing.done()

    async def close(self, grace_s: float) -> None:
        """The same, to its end. Raises Fenced."""
        while not self.leave(grace_s):
            self._changed.clear()
            await self.write()
            if not self.leave(grace_s):
                await self._changed.wait()
        await self.write()
        self._over = True
        self._changed.set()  # whoever waits for something else must not have missed it

    async def drop(self) -> None:
        """At once, whatever is under way: the execution is another's, or nobody's."""
        self._over = True
        while self._told:
            _, written = self._told.popleft()
            if not written.done():
                written.set_exception(Fenced("this attempt is over, or another worker's", epoch=0))
        if self._closing is not None:
            if self._closing.done():
                return
            self._closing.cancel()
            await asyncio.wait([self._closing])
        await self._close(0.0)

    async def _close(self, grace_s: float) -> None:
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            await asyncio.wait([self._opening])
        gateway = self._gateway
        if gateway is None:
            return
        try:
            async with asyncio.timeout(grace_s + CLOSE_LIMIT_S):
                await gateway.close(grace_s=grace_s)
        except TimeoutError:
            logger.error("the gateway did not close", extra={"at": str(self._at)})
        except CarrelError as failure:  # what it could not write any more is the next owner's to recover
            logger.warning("the gateway closed in disorder", extra={"why": str(failure)})


def _told_as(failure: BaseException) -> BaseException:
    return failure if isinstance(failure, CarrelError) else Fenced("this attempt is over", epoch=0)
