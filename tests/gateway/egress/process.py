"""The egress proxy as a process of its own, so that it can live in a network namespace: the real proxy behind a unix
socket, with as much of the front as it needs. One JSON argument: {socket, allow, private_allow, idle_s, uvloop};
commands as JSON lines: {allow: […]}, {held: bool}, {close: true}, {ask: n}. Prints events, answers and
`{"ready": true}` as JSON lines, too.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from asyncio import StreamReader, StreamWriter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop

from orchestrator.events import Entry
from orchestrator.execution import Egress, Execution, Spec
from orchestrator.gateway.egress import EgressProxies, EgressProxy
from orchestrator.gateway.exchange import Exchange
from orchestrator.gateway.refusals import Refused, Tongue
from orchestrator.gateway.routes import Kind, route
from orchestrator.lifecycle import ExecutionState


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def tell(entry: Entry) -> None:
    say(event=entry.type, **entry.data)


class Served:
    def __init__(self, plan: dict[str, Any]) -> None:
        self.held = True
        self.execution = Execution(
            "exe_1", Spec(), ExecutionState.RUNNING, datetime.now(UTC), egress=Egress(tuple(plan["allow"]))
        )
        proxies = EgressProxies(plan["private_allow"], idle_s=plan["idle_s"])
        opened = proxies.open(self.execution, tell=tell, held=lambda: self.held)
        assert isinstance(opened, EgressProxy)
        self.proxy = opened

    async def connection(self, reader: StreamReader, writer: StreamWriter) -> None:
        exchange = Exchange(reader, writer)
        try:
            if head := await exchange.head():
                if route(head.method, head.target).kind is Kind.TUNNEL:
                    await self.proxy.tunnel(head, reader, writer, exchange.leftover())
                else:
                    await self.proxy.forward(head, exchange.plain(), reader, writer)
                exchange.started = True
        except Refused as refused:
            await exchange.refuse(refused, Tongue.CARREL)
        finally:
            exchange.abandon()

    async def command(self, command: dict[str, Any]) -> None:
        if "allow" in command:
            self.execution = replace(self.execution, egress=Egress(tuple(command["allow"])))
            self.proxy.update(self.execution)
        if "held" in command:
            self.held = command["held"]
        if command.get("close"):
            await self.proxy.close()
            say(closed=True)
        if "ask" in command:
            traffic = self.proxy.traffic
            say(
                asked=command["ask"],
                out_bytes=traffic.out_bytes,
                in_bytes=traffic.in_bytes,
                refused=self.proxy.refusals.count,
                lookups=len([thread for thread in threading.enumerate() if thread.name == "egress-resolve"]),
                rss_kib=int(Path("/proc/self/statm").read_text().split()[1]) * 4,
            )


async def main(plan: dict[str, Any]) -> None:
    served = Served(plan)
    await asyncio.start_unix_server(served.connection, plan["socket"])
    say(ready=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        await served.command(json.loads(line))


if __name__ == "__main__":
    plan = json.loads(sys.argv[1])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if plan["uvloop"] else None) as runner:
        runner.run(main(plan))
