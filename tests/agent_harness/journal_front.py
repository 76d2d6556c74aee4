"""The journal of intents over HTTP for one execution: the gateway's routes, and behind them the real journal on a real
store. What a test wants to go wrong it says: refuse for a while, hang up before the answer, or half-way through it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from orchestrator.errors import CarrelError, NotFound
from orchestrator.history import Lease
from orchestrator.intents import Effect, Intent, IntentState
from tests.contracts.redis_store import Store

TOKEN = "cgt_0123456789"


@dataclass
class Front:
    """`faults`, one for each next request: a status to answer with, "hang up" or "half" (after it was done)."""

    store: Store
    lease: Lease
    port: int = 0
    attempt: int = 1
    faults: list[int | str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CARREL_GATEWAY": f"http://127.0.0.1:{self.port}",
            "CARREL_GATEWAY_TOKEN": TOKEN,
            "EXECUTION_ID": self.lease.execution_id,
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            method, target, _ = head[0].split()
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            self.asked.append(f"{method} {target}")
            assert headers["authorization"] == f"Bearer {TOKEN}"
            fault = self.faults.pop(0) if self.faults else ""
            if fault == "hang up":
                return
            if isinstance(fault, int):
                status, said = fault, {"error": {"code": "unavailable", "message": "the store is away"}}
            else:
                status, said = await self._answer(method, target, json.loads(body or b"{}"))
            data = json.dumps(said).encode()
            whole = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(data)) + data
            writer.write(whole[: -len(data) // 2] if fault == "half" else whole)
            await writer.drain()
        finally:
            writer.close()

    async def _answer(self, method: str, target: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        intents = self.store.intents
        path = urlsplit(target).path
        try:
            if (method, path) == ("POST", "/carrel/v1/intents"):
                asked["effect"] = Effect(asked["effect"])
                begun = await intents.begin(self.lease, attempt=self.attempt, **asked)
                return 200, {"go": begun.go, "intent": told(begun.intent)}
            if (method, path) == ("POST", "/carrel/v1/intents/finish"):
                return 200, {"intent": told(await intents.finish(self.lease, **asked))}
            if (method, path) == ("GET", "/carrel/v1/intents"):
                query = parse_qs(urlsplit(target).query)
                until = asyncio.get_running_loop().time() + float(query["wait_s"][0])
                while True:
                    intent = await intents.get(self.lease.execution_id, query["key"][0])
                    if intent.state is not IntentState.IN_DOUBT or asyncio.get_running_loop().time() > until:
                        return 200, {"intent": told(intent)}
                    await asyncio.sleep(0.02)
            raise NotFound("no such route")
        except CarrelError as error:
            return 409, {"error": {"code": error.code, "message": error.message, **error.data}}


def told(intent: Intent) -> dict[str, Any]:
    return {name: value.isoformat() if hasattr(value, "isoformat") else value for name, value in asdict(intent).items()}


@asynccontextmanager
async def fronted(store: Store) -> AsyncIterator[Front]:
    front = Front(store, await store.running())
    server = await asyncio.start_server(front.serve, "127.0.0.1", 0)
    front.port = server.sockets[0].getsockname()[1]
    try:
        yield front
    finally:
        server.close()
