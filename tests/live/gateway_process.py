"""A worker's gateway as a process of its own, to be killed: `python -m tests.live.gateway_process <plan as JSON>`, with
{redis_url, installation, epoch, owner, at}. Prints one line when it listens; serves until it is ended."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from orchestrator.clock import SystemClock
from orchestrator.events import Entry
from orchestrator.gateway.unix import UnixGateways
from orchestrator.history import Lease
from orchestrator.models import ModelPolicy
from orchestrator.stores.redis import Keys, RedisCalls, RedisExecutions, RedisIntents, Server


async def main() -> None:
    plan = json.loads(sys.argv[1])
    server, keys = Server(plan["redis_url"]), Keys(plan["installation"])
    lease = Lease("exe_a", plan["epoch"], plan["owner"], 15.0)

    async def tell(entry: Entry) -> None:
        print(entry, file=sys.stderr)

    intents = RedisIntents(server, keys)
    async with UnixGateways(ModelPolicy(), RedisCalls(server, keys), intents, SystemClock(), b"s" * 32) as gateways:
        execution = await RedisExecutions(server, keys).get(lease.execution_id)
        await gateways.open(lease, execution, Path(plan["at"]), tell=tell, held=lambda: True)
        print("listens", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
