"""An api of its own for each test: the real app under uvicorn on a unix socket, over a real store and real files; no
engine. Histories are driven through the ports, as a worker would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.client import AsyncClient, Patience
from orchestrator.drivers.scripted import ScriptedDriver
from orchestrator.events import Entry
from orchestrator.execution import Execution, Resources
from orchestrator.executions import Claim
from orchestrator.history import Change, Lease
from orchestrator.lifecycle import Trigger
from orchestrator.link import OwnerLink
from orchestrator.reaches.local import LocalReach
from orchestrator.sandbox import SandboxSpec
from orchestrator.server.admin_token import ensure_admin_token
from orchestrator.server.app import create_app
from orchestrator.server.cuts import new_snapshot_id
from orchestrator.server.parts import Parts, ServerSettings
from orchestrator.server.serve import Listening, listen, serving
from orchestrator.snapshots import Snapshot
from orchestrator.stores.redis import (
    Keys,
    RedisExecutions,
    RedisHistory,
    RedisIntents,
    RedisSnapshots,
    RedisStreams,
    RedisTokens,
    Server,
)
from orchestrator.tokens import Scope, Token, digest_of, mint
from orchestrator.workspaces.blobs import DirectoryBlobs
from orchestrator.workspaces.directory import DirectoryStore
from orchestrator.workspaces.shelf import DirectoryShelf
from tests.contracts.redis_store import Store

HOST = "h1"


INIT = Path(__file__).parents[2] / "sandbox-image" / "sandbox_init"


@dataclass
class Api:
    """What a test talks to, and what it drives histories with."""

    store: Store
    tokens: RedisTokens
    workspaces: DirectoryStore
    driver: ScriptedDriver
    parts: Parts
    listening: Listening
    data_dir: Path
    token: str
    client: AsyncClient
    http: httpx.AsyncClient
    socket: Path

    async def submit(self, **spec: Any) -> str:
        """The id of a new execution, through the API."""
        return (await self.client.submit(**({"command": ["true"]} | spec))).id

    async def running(self, **spec: Any) -> Lease:
        """One that runs, with a workspace, owned by nobody in particular."""
        id = await self.submit(**spec)
        claim = await self.store.executions.claim("w1", HOST, lease_s=60)
        assert isinstance(claim, Claim) and claim.execution.id == id
        await self.workspaces.prepare(f"sbx_{id}_1", inherit=None, seeds=(), disk_bytes=0)
        await self.store.place(claim.lease, own=1, host=HOST)
        await self.store.move(claim.lease, Trigger.HARNESS_STARTED, own=2, started=True)
        return claim.lease

    @asynccontextmanager
    async def boxed(self) -> AsyncIterator[str]:
        """The id of one that runs, with a living sandbox (needs root): real init, no harness."""
        lease = await self.running()
        sandbox_id = f"sbx_{lease.execution_id}_1"
        slot = self.workspaces.slot(sandbox_id)
        await self.driver.ensure(SandboxSpec("any", Resources(), slot.path), sandbox_id)
        try:
            owner = await OwnerLink.open(
                await self.driver.connect(sandbox_id), epoch=lease.epoch, after=0, changed=asyncio.Event()
            )
            try:
                await owner.open_gate(cgroup=False)
            finally:
                await owner.close()
            yield lease.execution_id
        finally:
            await self.driver.remove(sandbox_id)

    async def cut(self, lease: Lease, *, own: int, id: str = "", **fields: Any) -> Snapshot:
        """A snapshot as a worker takes it: files, then record and event."""
        id = id or new_snapshot_id(self.parts)
        await self.workspaces.snapshot(f"sbx_{lease.execution_id}_1", id)
        return await self.store.cut(lease, id, own=own, created_at=datetime.now(UTC), **fields)

    @asynccontextmanager
    async def cutting(self, lease: Lease, *, own: int, fails: str = "") -> AsyncIterator[None]:
        """A worker that does nothing but take the snapshots somebody wishes for, or says why it cannot."""

        async def work() -> None:
            at = own
            while True:
                for want in (await self.record(lease.execution_id)).wants.snapshots:
                    if fails:
                        failed = Entry("snapshot.failed", {"id": want.id, "why": want.why, "error": fails})
                        change = Change(done_wants=(want.id,))
                        await self.store.history.append(lease, attempt=1, own=at, entries=[failed], change=change)
                    else:
                        await self.workspaces.snapshot(f"sbx_{lease.execution_id}_1", want.id)
                        await self.store.cut(lease, want.id, own=at, why=want.why, name=want.name, labels=want.labels)
                        done = Change(done_wants=(want.id,))
                        at += 1
                        await self.store.history.append(lease, attempt=1, own=at, change=done)
                    at += 1
                await asyncio.sleep(0.005)

        working = asyncio.create_task(work())
        try:
            yield
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def record(self, id: str) -> Execution:
        return await self.store.executions.get(id)

    async def token_for(self, *scopes: Scope, tenant: str = "default") -> str:
        secret = mint()
        await self.tokens.put(Token(f"tok_{secret[4:12]}", digest_of(secret), frozenset(scopes), tenant=tenant))
        return secret

    @asynccontextmanager
    async def caller(self, token: str | None, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
        """A plain HTTP client, with this token or none: for what our own client would never send."""
        async with http_over(self.socket, token, **headers) as http:
            yield http


def http_over(socket: Path, token: str | None, **headers: str) -> httpx.AsyncClient:
    """A plain HTTP client on this unix socket."""
    given = {"authorization": f"Bearer {token}"} if token else {}
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(socket)),
        base_url="http://localhost",
        headers={**given, **headers},
        timeout=60,
    )


@pytest.fixture
def settings() -> ServerSettings:
    """Of the api; a test module may have its own."""
    return ServerSettings()


@pytest.fixture
async def api(redis_url: str, installation: str, short_dir: Path, settings: ServerSettings) -> AsyncIterator[Api]:
    async with running_api(redis_url, installation, short_dir, settings) as made:
        yield made


@asynccontextmanager
async def running_api(
    redis_url: str, installation: str, data_dir: Path, settings: ServerSettings, *, name: str = "api"
) -> AsyncIterator[Api]:
    """An api process's worth of objects, in this one."""
    server, keys = Server(redis_url), Keys(installation)
    executions, history, tokens = RedisExecutions(server, keys), RedisHistory(server, keys), RedisTokens(server, keys)
    streams = RedisStreams(server, keys)
    workspaces = DirectoryStore(data_dir / "slots")
    driver = ScriptedDriver(data_dir / "boxes", data_dir / "slots", INIT)
    app = create_app(
        executions=executions,
        history=history,
        reach=LocalReach(driver, workspaces, HOST),
        blobs=DirectoryBlobs(data_dir / "blobs"),
        tokens=tokens,
        intents=RedisIntents(server, keys),
        snapshots=RedisSnapshots(server, keys),
        store=workspaces,
        shelf=DirectoryShelf(data_dir / "shelf"),
        settings=replace(settings, host=HOST),
        streams=streams,
    )
    token = (await ensure_admin_token(data_dir, tokens)).read_text().strip()
    socket = data_dir / f"{name}.sock"
    try:
        async with (
            serving(app, at=listen(path=socket), grace_s=2) as listening,
            AsyncClient(listening.url, token, patience=Patience(limit_s=20, first_s=0.01, most_s=0.1)) as client,
            http_over(socket, token) as http,
        ):
            yield Api(
                store=Store(server, keys, executions, history),
                tokens=tokens,
                workspaces=workspaces,
                driver=driver,
                parts=app.state.parts,
                listening=listening,
                data_dir=data_dir,
                token=token,
                client=client,
                http=http,
                socket=socket,
            )
    finally:
        await streams.aclose()
        await history.aclose()
        await server.aclose()


async def until(condition: Callable[[], bool]) -> None:
    """Ask again until it is so; the test's own time limit ends a wait in vain."""
    while not condition():
        await asyncio.sleep(0.005)


def with_settings(**changes: Any) -> ServerSettings:
    return replace(ServerSettings(), **changes)
