"""Breaks things at random, from one seed: kills and stops processes, the store, lines to init. Judges nothing."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.errors import CarrelError
from orchestrator.lifecycle import WITH_SANDBOX
from orchestrator.link import OwnerLink
from tests.faults.ground import LEASE_S, Ground, Process

#: What is done, and how often beside the others.
MISCHIEF = {"kill_worker": 5, "stop_worker": 3, "cut_line": 4, "kill_store": 1, "kill_api": 1}


@dataclass
class Nemesis:
    """`done` counts what was broken, by kind."""

    ground: Ground
    seed: int
    pause_s: tuple[float, float] = (0.2, 0.9)
    mischief: Mapping[str, int] = field(default_factory=lambda: dict(MISCHIEF))
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._dice = random.Random(self.seed)

    async def run(self, kills: int) -> None:
        """Until it has broken something so many times, over all its runs; every process runs again at the end."""
        dice = self._dice
        waking: set[asyncio.Task[None]] = set()
        while self.done.total() < kills:
            await asyncio.sleep(dice.uniform(*self.pause_s))
            kind = dice.choices(list(self.mischief), list(self.mischief.values()))[0]
            worker, api = dice.choice(self.ground.workers), dice.choice(self.ground.apis or self.ground.workers)
            if kind == "kill_worker" and not worker.stopped:
                await self._kill(worker)
            elif kind == "kill_api" and self.ground.apis:
                await self._kill(api)
            elif kind == "stop_worker" and not worker.stopped and self._running() > 1:
                worker.stopped = True
                worker.send(signal.SIGSTOP)
                waking.add(asyncio.create_task(_wake(worker, LEASE_S * dice.uniform(1.2, 2.5))))
            elif kind == "kill_store":
                self.ground.kill_store()
            elif not (kind == "cut_line" and await self._cut_line(dice)):
                continue
            self.done[kind] += 1
        for task in waking:
            await task

    def _running(self) -> int:
        return sum(not worker.stopped for worker in self.ground.workers)

    async def _kill(self, process: Process) -> None:
        await process.kill()
        await process.start()

    async def _cut_line(self, dice: random.Random) -> bool:
        """Some owner's line to its init: init closes it when another of the same epoch comes."""
        try:
            living = [r async for r in self.ground.executions.everything() if r.state in WITH_SANDBOX and r.sandbox_id]
            if not living:
                return False
            record = dice.choice(living)
            duplex = await self.ground.driver.connect(record.sandbox_id or "")
            link = await OwnerLink.open(duplex, epoch=record.epoch, after=record.src, changed=asyncio.Event())
            await link.close()
        except CarrelError:  # it has just ended, has another owner, or the store was just killed
            return False
        return True


async def _wake(worker: Process, after_s: float) -> None:
    await asyncio.sleep(after_s)
    worker.send(signal.SIGCONT)
    worker.stopped = False
