"""The egress proxy as a process of its own, so that it can live in a network namespace: the real proxy behind a unix
socket, with as much of a front as it needs. One JSON argument: {socket, allow, private_allow, idle_s, uvloop}; commands
as JSON lines: {allow: […]}, {held: bool}, {close: true}, {ask: n}. Prints events, answers and `{"ready": true}` so too.
"""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import h11
import uvloop

from orchestrator.events import Entry
from orchestrator.execution import Egress, Execution, Spec
from orchestrator.gateway.egress import EgressProxies, EgressProxy
from orchestrator.gateway.egress_port import Head
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
        line = h11.Connection(h11.SERVER)
        try:
            while (event := line.next_event()) is h11.NEED_DATA:
                line.receive_data(await reader.read(65536))
            if isinstance(event, h11.Request):
                await self.request(line, event, reader, writer)
        except h11.RemoteProtocolError:
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        finally:
            writer.close()

    async def request(
        self, line: h11.Connection, event: h11.Request, reader: StreamReader, writer: StreamWriter
    ) -> None:
        head = Head(
            event.method.decode(),
            event.target.decode(),
            tuple((name.decode(), value.decode("latin-1")) for name, value in event.headers),
            event.http_version.decode(),
        )
        if head.method == "CONNECT":
            await self.proxy.tunnel(head, reader, writer, line.trailing_data[0])
            return

        async def body() -> AsyncIterator[bytes]:
            try:
                while not isinstance(part := line.next_event(), h11.EndOfMessage):
                    if part is h11.NEED_DATA:
                        line.receive_data(await reader.read(65536))
                    elif isinstance(part, h11.Data):
                        yield bytes(part.data)
            except h11.RemoteProtocolError as wrong:
                raise ValueError(str(wrong)) from None

        await self.proxy.forward(head, body(), reader, writer)

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
