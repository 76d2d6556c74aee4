"""A worker without fences, for the ablation and for nothing else: the store takes every write as it comes, and every
owner greets init under the same epoch, so that none is ever too old."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from orchestrator import configuration, logs
from orchestrator.assembly import installed, worker_of
from orchestrator.execution import Execution
from orchestrator.executions import Claim, Nothing
from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server


class Unfenced(RedisExecutions):
    """Epochs that never rise, and an owner that always takes itself for the owner."""

    me: str | None = None

    async def claim(self, owner: str, host: str, *, lease_s: float, adopt_only: bool = False) -> Claim | Nothing:
        self.me = owner
        found = await super().claim(owner, host, lease_s=lease_s, adopt_only=adopt_only)
        if isinstance(found, Nothing):
            return found
        return replace(found, lease=replace(found.lease, epoch=1), execution=replace(found.execution, epoch=1))

    async def get(self, execution_id: str) -> Execution:
        return replace(await super().get(execution_id), epoch=1, owner=self.me)


async def main() -> None:
    effective = configuration.load()
    logs.configure(effective.log_format, effective.log_level)
    async with installed(effective) as parts:
        server, keys = Server(effective.redis_url), Keys(effective.installation)
        unfenced = replace(
            parts,
            executions=Unfenced(server, keys, fenced=False),
            history=RedisHistory(server, keys, fenced=False),
        )
        await worker_of(unfenced).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
