"""What tests of the gateway stand on: a running execution in a real store, gateways opened for it, clients that speak
to them as programs in a sandbox do (through a unix socket instead of init's outlet), and the events they left."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from orchestrator.clock import SystemClock
from orchestrator.events import Entry, Event
from orchestrator.execution import Budget, Execution, Limits
from orchestrator.gateway.egress_port import Egresses
from orchestrator.gateway.token import token_of
from orchestrator.gateway.unix import UnixGateway, UnixGateways
from orchestrator.history import Lease
from orchestrator.models import ModelApi, ModelPolicy, Price, Provider
from scripted_model import ScriptedModel, read
from tests.contracts.redis_store import Store

SECRET = b"s" * 32
KEY = "sk-canary-7f3c1e9a5b"  # the provider's: to be seen by the provider and nobody else
ALL = (ModelApi.MESSAGES, ModelApi.CHAT, ModelApi.RESPONSES)
PRICES = {"cheap*": Price(input=1_000_000, output=2_000_000, cache_read=100_000, cache_write=1_250_000)}

PATHS = {ModelApi.MESSAGES: "/v1/messages", ModelApi.CHAT: "/v1/chat/completions", ModelApi.RESPONSES: "/v1/responses"}


def asked(api: ModelApi, text: str = "hello", *, stream: bool = False, **more: Any) -> dict[str, Any]:
    """A request body of one user message."""
    body: dict[str, Any] = {"model": "cheap-1"}
    if api is ModelApi.RESPONSES:
        body["input"] = [{"role": "user", "content": [{"type": "input_text", "text": text}]}]
    else:
        body["messages"] = [{"role": "user", "content": text}]
    if api is ModelApi.MESSAGES:
        body["max_tokens"] = 100
    return body | ({"stream": True} if stream else {}) | more


def said(api: ModelApi, answer: Mapping[str, Any]) -> str:
    """The text of a JSON answer."""
    match api:
        case ModelApi.MESSAGES:
            return "".join(block.get("text", "") for block in answer["content"])
        case ModelApi.CHAT:
            return str(answer["choices"][0]["message"]["content"])
        case ModelApi.RESPONSES:
            parts = [part for item in answer["output"] if item["type"] == "message" for part in item["content"]]
            return "".join(part["text"] for part in parts)


def script(*turns: Mapping[str, Any]) -> ScriptedModel:
    """A model server that demands the key."""
    return ScriptedModel(read({"turns": list(turns) or [{"text": "Hello there."}]}), key=KEY)


@dataclass
class Rig:
    store: Store
    folder: Path
    told: list[Entry] = field(default_factory=list)
    lease: Lease | None = None
    held: bool = True
    _open: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _opened: int = 0

    async def aclose(self) -> None:
        await self._open.aclose()

    @property
    def execution_id(self) -> str:
        return "exe_a"

    async def execution(self) -> Execution:
        return await self.store.executions.get(self.execution_id)

    def policy(self, url: str, **settings: Any) -> ModelPolicy:
        """One provider at `url` that speaks everything."""
        settings.setdefault("prices", PRICES)
        return ModelPolicy(providers=(Provider("testing", url, ALL, key=KEY),), **settings)

    async def gateway(
        self,
        policy: ModelPolicy | str,
        *,
        budget: Budget | None = None,
        lease: Lease | None = None,
        egresses: Egresses | None = None,
        **spec: Any,
    ) -> Reached:
        """Open one for the execution, which is submitted and started by the first."""
        if self.lease is None:
            self.lease = await self.store.running(limits=Limits(budget=budget or Budget()), **spec)
        if isinstance(policy, str):
            policy = self.policy(policy)
        gateways = await self._open.enter_async_context(
            UnixGateways(policy, self.store.calls, self.store.intents, SystemClock(), SECRET, egresses=egresses)
        )
        self._opened += 1
        at = self.folder / f"g{self._opened}.sock"
        opened = await gateways.open(
            lease or self.lease, await self.execution(), at, tell=self._tell, held=lambda: self.held
        )
        self._open.push_async_callback(opened.close, grace_s=0)
        client = await self._open.enter_async_context(client_of(at))
        return Reached(opened, gateways, at, client)

    async def _tell(self, entry: Entry) -> None:
        self.told.append(entry)

    async def events(self, *types: str) -> list[Event]:
        return await self.store.told(*types)


@dataclass
class Reached:
    """One open gateway, and a client of it with the execution's token."""

    gateway: UnixGateway
    gateways: UnixGateways
    at: Path
    client: httpx.AsyncClient

    async def ask(self, api: ModelApi, text: str = "hello", *, key: str = "", **more: Any) -> httpx.Response:
        """One request, its answer whole."""
        headers = {"idempotency-key": key} if key else {}
        return await self.client.post(PATHS[api], json=asked(api, text, **more), headers=headers)

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.at))

    async def raw(self, data: bytes) -> bytes:
        """What comes back for these bytes, to the end."""
        reader, writer = await self.dial()
        try:
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                return await reader.read()
            return b""
        finally:
            writer.close()


def client_of(at: Path, token: str | None = None) -> httpx.AsyncClient:
    token = token_of(SECRET, "exe_a") if token is None else token
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(at)), base_url="http://gateway", headers=headers, timeout=60
    )


def request_bytes(api: ModelApi, body: Mapping[str, Any], *headers: str) -> bytes:
    """A whole request, for who wants the connection in hand."""
    data = json.dumps(body).encode()
    token = token_of(SECRET, "exe_a")
    lines = [
        f"POST {PATHS[api]} HTTP/1.1",
        "host: gateway",
        f"x-api-key: {token}",
        "content-type: application/json",
        f"content-length: {len(data)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def until(seen: Any) -> None:
    """`seen()` comes true, now or soon; it may be a coroutine function."""
    async with asyncio.timeout(30):
        while True:
            value = seen()
            if asyncio.iscoroutine(value):
                value = await value
            if value:
                return
            await asyncio.sleep(0.005)
