"""A worker whose store takes every write as it comes, for the ablation and for nothing else."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace

from orchestrator import logs, settings
from orchestrator.assembly import installed, worker_of
from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server


async def main() -> None:
    effective = settings.load()
    logs.configure(effective.log_format, effective.log_level)
    async with installed(effective) as parts:
        server, keys = Server(effective.redis_url), Keys(effective.installation)
        unfenced = replace(
            parts,
            executions=RedisExecutions(server, keys, fenced=False),
            history=RedisHistory(server, keys, fenced=False),
        )
        await worker_of(unfenced).run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
