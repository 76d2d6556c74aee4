"""A whole engine for tests, on real parts: a store of its own, real inits in boxes of the scripted driver.

Everything a test makes lies under one short directory and one installation name, and is removed with it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ulid import ULID

from orchestrator import events
from orchestrator.archive import Archive
from orchestrator.archives.histories import ArchivedHistories
from orchestrator.clock import SystemClock
from orchestrator.drivers.scripted import Script, ScriptedDriver
from orchestrator.engine.parts import Parts, WorkerSettings
from orchestrator.engine.worker import Worker
from orchestrator.events import Cursor, Event
from orchestrator.execution import CancelWant, Execution, Spec
from orchestrator.executions import EGRESS_SENT
from orchestrator.gateways import Tell
from orchestrator.history import Lease, Sent
from orchestrator.sandbox import Absent, SandboxDriver
from orchestrator.stores.redis import (
    Keys,
    RedisCalls,
    RedisExecutions,
    RedisHistory,
    RedisIntents,
    RedisSnapshots,
    Server,
    prepare,
)
from orchestrator.workspace import SnapshotStore
from orchestrator.workspaces.blobs import DirectoryBlobs
from orchestrator.workspaces.directory import DirectoryStore
from orchestrator.workspaces.shelf import DirectoryShelf

INIT = Path(__file__).parents[2] / "sandbox-image" / "sandbox_init"


@dataclass
class Opened:
    """One gateway as the engine opened it, and everything it was told; it listens for real. `under_way`: a call it has
    begun, which a close waits for."""

    lease: Lease
    execution: Execution
    tell: Tell
    held: Callable[[], bool]
    server: asyncio.Server
    updates: list[Execution] = field(default_factory=list)
    under_way: asyncio.Future[None] | None = None
    graces_s: list[float] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return self.under_way is not None and not self.under_way.done()

    def update(self, execution: Execution) -> None:
        self.updates.append(execution)

    async def close(self, *, grace_s: float) -> None:
        self.graces_s.append(grace_s)
        if self.under_way is not None:
            await asyncio.wait([self.under_way], timeout=grace_s)
        self.server.close()

    @property
    def closed(self) -> bool:
        return not self.server.is_serving()


@dataclass
class RecordingGateways:
    """Gateways that answer every connection with one line and keep a list of what was asked of them."""

    opened: list[Opened] = field(default_factory=list)
    fail: list[Exception] = field(default_factory=list)
    untold: list[Exception] = field(default_factory=list)
    sent_bytes: int = 0

    def environment(self, execution: Execution) -> Mapping[str, str]:
        if self.untold:
            raise self.untold.pop(0)
        return {"CARREL_GATEWAY": "here", "MODEL": execution.spec.model or "default"}

    def counted(self) -> Mapping[str, int]:
        return {EGRESS_SENT: self.sent_bytes}

    async def open(
        self, lease: Lease, execution: Execution, at: Path, *, tell: Tell, held: Callable[[], bool]
    ) -> Opened:
        if self.fail:
            raise self.fail.pop(0)

        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"%d\n" % lease.epoch)
            writer.close()

        new = at.with_suffix(".new")
        server = await asyncio.start_unix_server(answer, new)
        new.rename(at)
        self.opened.append(Opened(lease, execution, tell, held, server))
        return self.opened[-1]


@dataclass
class Stage:
    """What tests act on: the ports, and verbs that wait for what they name."""

    parts: Parts
    script: Script
    gateways: RecordingGateways
    calls: RedisCalls
    workers: list[tuple[Worker, asyncio.Task[None]]] = field(default_factory=list)

    async def submit(self, task: str = "", **spec: Any) -> Execution:
        asked = Spec(task=task, **spec)
        done = await self.parts.executions.submit(asked, execution_id=f"exe_{str(ULID()).lower()}")
        return done.execution

    async def bash(self, script: str, **spec: Any) -> Execution:
        return await self.submit(harness="command", command=("bash", "-c", script), **spec)

    async def idle(self, worker: Worker) -> None:
        """Wait until it owns nothing: also what follows an end is done."""
        while worker.owned:
            await asyncio.sleep(0.01)

    async def gone(self, sandbox_id: str) -> None:
        """Wait until the sandbox is not there any more."""
        while not isinstance(await self.parts.driver.observe(sandbox_id), Absent):
            await asyncio.sleep(0.01)

    def work(self, **other: Any) -> Worker:
        """One more worker in this process."""
        name = f"w{len(self.workers) + 1}"
        settings = replace(self.parts.settings, worker=name, **other)
        worker = Worker(replace(self.parts, settings=settings))
        self.workers.append((worker, asyncio.create_task(worker.run(), name=name)))
        return worker

    def elsewhere(self, folder: Path, **other: Any) -> tuple[Worker, Parts]:
        """A worker of another host, whose workspaces and boxes lie below `folder`; and what it acts on."""
        name = f"w{len(self.workers) + 1}"
        driver = ScriptedDriver(folder / "boxes", folder / "slots", INIT, script=self.script)
        settings = replace(self.parts.settings, worker=name, host="elsewhere", **other)
        parts = replace(self.parts, driver=driver, workspaces=DirectoryStore(folder / "slots"), settings=settings)
        worker = Worker(parts)
        self.workers.append((worker, asyncio.create_task(worker.run(), name=name)))
        return worker, parts

    async def stop(self, worker: Worker) -> None:
        """Drop it as a crash would: nothing is handed over."""
        for one, task in self.workers:
            if one is worker:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def drain(self, worker: Worker) -> None:
        """SIGTERM, to its end."""
        for one, task in self.workers:
            if one is worker:
                worker.drain()
                await task

    async def history(self, execution: Execution) -> list[Event]:
        """All of it, as it is now."""
        told: list[Event] = []
        cursor = Cursor()
        while True:
            page = await self.parts.history.read(execution.id, cursor)
            if not page.events:
                return told
            told += page.events
            cursor = page.next

    async def ended(self, execution: Execution) -> Execution:
        """Follow it to its end marker; the record then."""
        async for page in self.parts.history.follow(execution.id, Cursor()):
            if page.closed:
                break
        return await self.parts.executions.get(execution.id)

    async def saw(self, execution: Execution, wanted: Callable[[Event], bool]) -> Event:
        """Wait until its history has such an event."""
        async for page in self.parts.history.follow(execution.id, Cursor()):
            for event in page.events:
                if wanted(event):
                    return event
            assert not page.closed, "it ended without"
        raise AssertionError("unreachable")

    async def saw_record(self, execution: Execution, wanted: Callable[[Event], bool]) -> Execution:
        """The record after `saw`."""
        await self.saw(execution, wanted)
        return await self.parts.executions.get(execution.id)

    async def until(self, execution: Execution, true: Callable[[Execution], bool]) -> Execution:
        """Wait until its record is so."""
        while not true(record := await self.parts.executions.get(execution.id)):
            await asyncio.sleep(0.01)
        return record

    async def send(self, execution: Execution, message_id: str, text: str) -> Sent:
        return await self.parts.history.send(execution.id, message_id, text.encode())

    async def cancel(self, execution: Execution, grace_s: float = 10.0) -> None:
        await self.parts.executions.want(execution.id, CancelWant(f"c{grace_s}", grace_s))


def stdout(told: list[Event]) -> bytes:
    """What it printed, put together."""
    return b"".join(e.body or b"" for e in told if e.type == events.OUTPUT and e.data.get("stream") == "stdout")


def printed(text: str) -> Callable[[Event], bool]:
    """For `saw`: an output that holds this."""
    return lambda event: event.type == events.OUTPUT and text.encode() in (event.body or b"")


def kinds(told: list[Event]) -> list[str]:
    return [event.type for event in told]


@asynccontextmanager
async def stage(
    redis_url: str,
    installation: str,
    folder: Path,
    *,
    driver: SandboxDriver | None = None,
    workspaces: SnapshotStore | None = None,
    archive: Archive | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """Everything but workers, on `driver` or on boxes. At the end nothing of it is left."""
    server = Server(redis_url)
    keys = Keys(installation)
    await prepare(server, keys)
    script = Script()
    workspaces = workspaces or DirectoryStore(folder / "slots")
    slots = workspaces.slot("sbx_any").path.parent
    histories = ArchivedHistories(archive) if archive is not None else None
    history = RedisHistory(server, keys, archive=histories)
    driver = driver or ScriptedDriver(folder / "boxes", slots, INIT, script=script)
    given: dict[str, Any] = {
        "image": "any",
        "lease_s": 2.0,
        "sweep_interval_s": 0.5,
        "orphan_grace_s": 60.0,
        "look_s": 5.0,
        **settings,
    }
    gateways = RecordingGateways()
    parts = Parts(
        executions=RedisExecutions(server, keys),
        history=history,
        driver=driver,
        workspaces=workspaces,
        snapshots=RedisSnapshots(server, keys),
        intents=RedisIntents(server, keys),
        blobs=DirectoryBlobs(folder / "blobs"),
        shelf=DirectoryShelf(folder / "shelf"),
        clock=SystemClock(),
        settings=WorkerSettings(worker="w0", host="here", **given),
        gateways=gateways,
        archive=archive,
        histories=histories,
    )
    here = Stage(parts, script, gateways, RedisCalls(server, keys))
    try:
        yield here
    finally:
        for _, task in here.workers:
            task.cancel()
        await asyncio.gather(*(task for _, task in here.workers), return_exceptions=True)
        script.fail_at.clear()
        for box in await driver.list():
            await driver.remove(box.sandbox_id)
        await history.aclose()
        await server.aclose()
        shutil.rmtree(folder, ignore_errors=True)


async def soon(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait until it is so; the test's own time limit is the only one."""
    while not await true():
        await asyncio.sleep(0.01)
