"""The journal of intents as a program in a sandbox reaches it: the real gateway on a real store, and before it, where
the outlet would be, a line that fails as a test says: answers in the gateway's stead, hangs up, breaks off half-way."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from orchestrator.clock import SystemClock
from orchestrator.events import Entry
from orchestrator.execution import Budget, Limits
from orchestrator.gateway.unix import UnixGateway, UnixGateways
from orchestrator.history import Lease
from orchestrator.intents import Decision
from orchestrator.models import ModelPolicy
from tests.contracts.redis_store import Store


@dataclass
class Front:
    """`faults`, one for each next request: a status to answer with, "hang up", "half" (after it was done), "": none."""

    store: Store
    lease: Lease
    gateway: UnixGateway
    at: Path
    environment: dict[str, str]
    faults: list[int | str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def port(self) -> int:
        return urlsplit(self.environment["CARREL_GATEWAY"]).port or 0

    @port.setter
    def port(self, port: int) -> None:
        self.environment["CARREL_GATEWAY"] = f"http://127.0.0.1:{port}"

    async def settle(self, decision: Decision, result: str = "") -> None:
        """As `carrel settle` does, and the worker when it hears of it."""
        await self.store.intents.settle(self.lease.execution_id, "k", decision, result=result, by="ada")
        self.gateway.update(await self.store.executions.get(self.lease.execution_id))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            await self._exchange(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # a client that was killed
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self.serving.discard(task)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
        body = await reader.readexactly(length)
        self.asked.append(lines[0].rpartition(" ")[0])
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "hang up":
            return
        if isinstance(fault, int):
            said = json.dumps({"error": {"code": "unavailable", "message": "the store is away"}}).encode()
            answer = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (fault, len(said)) + said
        else:
            from_gateway, to_gateway = await asyncio.open_unix_connection(self.at)
            try:
                to_gateway.write(head + body)
                answer = await from_gateway.read()
            finally:
                to_gateway.close()
                with contextlib.suppress(ConnectionError):
                    await to_gateway.wait_closed()
        writer.write(answer[: -len(answer) // 3] if fault == "half" else answer)
        await writer.drain()


@asynccontextmanager
async def fronted(
    store: Store, folder: Path, policy: ModelPolicy | None = None, budget: Budget | None = None
) -> AsyncIterator[Front]:
    lease = await store.running(limits=Limits(budget=budget or Budget()))

    async def tell(entry: Entry) -> None:
        raise AssertionError(f"no event of the gateway's own is expected: {entry}")

    async with UnixGateways(policy or ModelPolicy(), store.calls, store.intents, SystemClock(), b"s" * 32) as gateways:
        execution = await store.executions.get(lease.execution_id)
        at = folder / "gateway.sock"
        gateway = await gateways.open(lease, execution, at, tell=tell, held=lambda: True)
        environment = {**gateways.environment(execution), "EXECUTION_ID": execution.id}
        front = Front(store, lease, gateway, at, environment)
        server = await asyncio.start_server(front.serve, "127.0.0.1", 0)
        front.port = server.sockets[0].getsockname()[1]
        try:
            yield front
        finally:
            server.close()
            await gateway.close(grace_s=0)
            while front.serving:
                await asyncio.wait(set(front.serving))
