"""The client for programs with an event loop: the twin of `sync.py`, method for method, where each is described.
Carries out the core's steps; decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from orchestrator import profile
from orchestrator.client import (
    address,
    calls,
    changes,
    downloading,
    executing,
    file_requests,
    following,
    requests,
    snapshot_requests,
    uploads,
)
from orchestrator.client.aio_files import AsyncArtifacts, AsyncFiles
from orchestrator.client.answers import HistoryPage
from orchestrator.client.channel import ChannelCore
from orchestrator.client.exchange import Call, Emit, Request, Sleep, Stream
from orchestrator.client.following import Batch
from orchestrator.client.patience import FOR_EVER, Patience
from orchestrator.client.snapshotting import take_snapshot
from orchestrator.client.transport import SILENCE_S, AsyncTransport
from orchestrator.client.waiting import wait_until_ended
from orchestrator.events import Event
from orchestrator.wire.command import ExecResult
from orchestrator.wire.operate import HarnessAnswer, Health, Readiness, Stats
from orchestrator.wire.prune import PruneAnswer
from orchestrator.wire.record import Record, RecordPage
from orchestrator.wire.snapshot import SnapshotAnswer, TreeAnswer
from orchestrator.wire.steering import Receipt
from orchestrator.wire.way_out import IntentAnswer

if TYPE_CHECKING:
    from orchestrator.client.sockets import AsyncChannel

T = TypeVar("T")


class AsyncClient:
    """One server: at `url`, or without one the one the command line would talk to, with its token (profile.py).
    `patience`: how long a call goes on trying while the server is away (30 s); `watching`: how long a
    follower does (for ever). `on_retry(why, delay_s)` is told of each wait; an open connection that is silent
    for `silence_s` counts as dead. For one event loop. Close it, or use `async with`.

    Errors are those of `orchestrator.errors`, rebuilt from the server's problems by their code.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str = "",
        *,
        patience: Patience | None = None,
        watching: Patience = FOR_EVER,
        on_retry: Callable[[str, float], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        silence_s: float = SILENCE_S,
    ) -> None:
        if url is None:
            found = profile.target(None, None)
            url, token = found.url, token or found.token
        self.address = address.parse(url)
        self.token = token
        self._patience = patience or Patience()
        self._watching = watching
        self._on_retry = on_retry
        self._clock = clock
        self._transport = AsyncTransport(self.address, token, silence_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """See sync.Client.close."""
        await self._transport.close()

    # -- carrying out ------------------------------------------------------------------------------------------------

    async def call(self, request: Request[T]) -> T:
        """See sync.Client.call."""
        return await self.finish(calls.call(request, self._patience, self._clock, self.address.url))

    async def finish(self, steps: Call[T]) -> T:
        """See sync.Client.finish."""
        async with aclosing(self._transport.line()) as line:
            got: Any = None
            while True:
                try:
                    step = steps.send(got)
                except StopIteration as end:
                    value: T = end.value
                    return value
                if isinstance(step, Sleep) and self._on_retry:
                    self._on_retry(step.why, step.delay_s)
                got = await line.step(step)

    async def items(self, steps: Stream[T]) -> AsyncGenerator[T, None]:
        """See sync.Client.items."""
        async with aclosing(self._transport.line()) as line:
            got: Any = None
            while True:
                try:
                    step = steps.send(got)
                except StopIteration:
                    return
                if isinstance(step, Emit):
                    yield step.item
                    got = None
                    continue
                if isinstance(step, Sleep) and self._on_retry:
                    self._on_retry(step.why, step.delay_s)
                got = await line.step(step)

    # -- the API -----------------------------------------------------------------------------------------------------

    async def submit(self, *, key: str = "", **spec: Any) -> AsyncExecution:
        """See sync.Client.submit."""
        record = await self.call(requests.submit(spec, key=key))
        return AsyncExecution(self, record.id, record)

    async def run(self, task: str, **spec: Any) -> Record:
        """See sync.Client.run."""
        return await (await self.submit(task=task, **spec)).wait()

    async def harnesses(self) -> Sequence[HarnessAnswer]:
        """See sync.Client.harnesses."""
        return (await self.call(requests.harnesses())).harnesses

    async def get(self, ref: str) -> AsyncExecution:
        """See sync.Client.get."""
        record = await self.call(requests.get(ref))
        return AsyncExecution(self, record.id, record)

    def execution(self, ref: str) -> AsyncExecution:
        """See sync.Client.execution."""
        return AsyncExecution(self, ref, None)

    async def page(self, **filter: Any) -> RecordPage:
        """See sync.Client.page."""
        return await self.call(requests.find(**filter))

    async def list(self, **filter: Any) -> AsyncGenerator[Record, None]:
        """See sync.Client.list."""
        cursor = ""
        while True:
            page = await self.page(**filter, cursor=cursor)
            for record in page.executions:
                yield record
            cursor = page.next
            if not cursor:
                return

    async def snapshots(self, execution: str = "") -> AsyncGenerator[SnapshotAnswer, None]:
        """See sync.Client.snapshots."""
        cursor = ""
        while True:
            page = await self.call(snapshot_requests.snapshots(execution, cursor=cursor))
            for snapshot in page.snapshots:
                yield snapshot
            cursor = page.next
            if not cursor:
                return

    async def snapshot(self, ref: str) -> SnapshotAnswer:
        """See sync.Client.snapshot."""
        return await self.call(snapshot_requests.snapshot_record(ref))

    async def label_snapshot(
        self, ref: str, *, name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> SnapshotAnswer:
        """See sync.Client.label_snapshot."""
        return await self.call(snapshot_requests.snapshot_words(ref, name=name, labels=labels))

    def export_snapshot(self, ref: str) -> AsyncGenerator[bytes, None]:
        """See sync.Client.export_snapshot."""
        return self.download(lambda *_: snapshot_requests.snapshot_export(ref))

    async def delete_snapshot(self, ref: str) -> None:
        """See sync.Client.delete_snapshot."""
        await self.call(snapshot_requests.snapshot_delete(ref))

    async def upload(self, source: bytes | Path, path: str, *, mode: int | None = None) -> Mapping[str, Any]:
        """See sync.Client.upload."""
        file = await asyncio.to_thread(uploads.source, source, path, mode=mode)
        if not await self.call(file_requests.blob_known(file.sha256)):
            uploads.check(file, (await self.call(file_requests.blob(file.body))).sha256)
        return file.entry

    async def prune(self, **wish: Any) -> AsyncGenerator[PruneAnswer]:
        """See sync.Client.prune."""
        after = ""
        while True:
            answer = await self.call(requests.prune({**wish, "after": after or None}))
            yield answer
            if not (after := answer.next):
                return

    async def stats(self, *, since: datetime | None = None, by: str = "", disk: bool = False) -> Stats:
        """See sync.Client.stats."""
        return await self.call(requests.stats(since=since, by=by, disk=disk))

    async def health(self) -> Health:
        """See sync.Client.health."""
        return await self.call(requests.health())

    async def ready(self) -> Readiness:
        """See sync.Client.ready."""
        return await self.call(requests.ready())

    def follow(self, ref: str, *, after: str = "", tail: int | None = None) -> AsyncGenerator[Batch, None]:
        """See sync.Client.follow."""
        steps = following.follow(
            ref, after=after, tail=tail, patience=self._watching, clock=self._clock, url=self.address.url
        )
        return self.items(steps)

    def download(self, request: Callable[[int, str], Request[None]]) -> AsyncGenerator[bytes, None]:
        """See sync.Client.download."""
        return self.items(
            downloading.download(request, patience=self._patience, clock=self._clock, url=self.address.url)
        )

    def watch(self, request: Request[None]) -> AsyncGenerator[changes.Change, None]:
        """See sync.Client.watch."""
        return self.items(changes.watch(request, patience=self._watching, clock=self._clock, url=self.address.url))


class AsyncExecution:
    """One execution by its name, from anywhere. `record` is as it was last read; None before the first time."""

    def __init__(self, client: AsyncClient, id: str, record: Record | None) -> None:
        self._client = client
        self.id = id
        self.record = record
        self.files = AsyncFiles(client, id)
        self.artifacts = AsyncArtifacts(client, id)

    def _kept(self, record: Record) -> Record:
        self.record = record
        return record

    async def refresh(self, *, disk: bool = False) -> Record:
        """See sync.Execution.refresh."""
        return self._kept(await self._client.call(requests.get(self.id, disk=disk)))

    async def wait(self, timeout_s: float | None = None) -> Record:
        """See sync.Execution.wait."""
        steps = wait_until_ended(
            self.id, timeout_s, patience=self._client._watching, clock=self._client._clock, url=self._client.address.url
        )
        return self._kept(await self._client.finish(steps))

    async def events(self, *, after: str = "", tail: int | None = None) -> AsyncGenerator[Event, None]:
        """See sync.Execution.events."""
        async with aclosing(self.batches(after=after, tail=tail)) as batches:
            async for batch in batches:
                for event in batch.events:
                    yield event

    def batches(self, *, after: str = "", tail: int | None = None) -> AsyncGenerator[Batch, None]:
        """See sync.Execution.batches."""
        return self._client.follow(self.id, after=after, tail=tail)

    async def history(
        self, *, after: str = "", tail: int | None = None, limit: int = 1000, hold_s: float = 0.0
    ) -> HistoryPage:
        """See sync.Execution.history."""
        return await self._client.call(requests.page(self.id, after=after, tail=tail, limit=limit, hold_s=hold_s))

    async def send(self, content: str | bytes, *, id: str = "", mode: str | None = None) -> Receipt:
        """See sync.Execution.send."""
        return await self._client.call(requests.message(self.id, content, id=id, mode=mode))

    async def interrupt(self, *, id: str = "") -> Record:
        """See sync.Execution.interrupt."""
        return self._kept(await self._client.call(requests.wish(self.id, "interrupt", id=id)))

    async def cancel(self, *, grace_s: float | None = None, reason: str | None = None, id: str = "") -> Record:
        """See sync.Execution.cancel."""
        return self._kept(
            await self._client.call(requests.wish(self.id, "cancel", id=id, grace_s=grace_s, reason=reason))
        )

    async def pause(self, *, id: str = "") -> Record:
        """See sync.Execution.pause."""
        return self._kept(await self._client.call(requests.wish(self.id, "pause", id=id)))

    async def resume(self, *, id: str = "") -> Record:
        """See sync.Execution.resume."""
        return self._kept(await self._client.call(requests.wish(self.id, "resume", id=id)))

    async def hibernate(self, *, hold_s: float = 0.0, id: str = "") -> Record:
        """See sync.Execution.hibernate."""
        return self._kept(await self._client.call(requests.wish(self.id, "hibernate", id=id, hold_s=hold_s)))

    async def snapshot(
        self,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        key: str = "",
    ) -> SnapshotAnswer:
        """See sync.Execution.snapshot."""
        return await self._client.finish(
            take_snapshot(
                self.id,
                name=name,
                labels=labels,
                key=key,
                timeout_s=timeout_s,
                patience=self._client._patience,
                clock=self._client._clock,
                url=self._client.address.url,
            )
        )

    def snapshots(self) -> AsyncGenerator[SnapshotAnswer, None]:
        """See sync.Execution.snapshots."""
        return self._client.snapshots(self.id)

    async def fork(self, *, count: int = 1, key: str = "", **changes: Any) -> Sequence[AsyncExecution]:
        """See sync.Execution.fork."""
        made = await self._client.call(snapshot_requests.fork(self.id, {**changes, "count": count}, key=key))
        return [AsyncExecution(self._client, record.id, record) for record in made.executions]

    async def rewind(self, snapshot: str, *, key: str = "") -> AsyncExecution:
        """See sync.Execution.rewind."""
        made = (await self._client.call(snapshot_requests.rewind(self.id, snapshot, key=key))).executions[0]
        return AsyncExecution(self._client, made.id, made)

    async def tree(self) -> TreeAnswer:
        """See sync.Execution.tree."""
        return await self._client.call(snapshot_requests.tree(self.id))

    async def resources(
        self,
        *,
        cpus: float | None = None,
        memory_bytes: int | None = None,
        pids: int | None = None,
        hold_s: float = 0.0,
        id: str = "",
    ) -> Record:
        """See sync.Execution.resources."""
        return self._kept(
            await self._client.call(
                requests.resources(self.id, cpus=cpus, memory_bytes=memory_bytes, pids=pids, hold_s=hold_s, id=id)
            )
        )

    async def set_egress(self, allow: Sequence[str], *, id: str = "") -> Record:
        """See sync.Execution.set_egress."""
        return self._kept(await self._client.call(requests.egress(self.id, allow, id=id)))

    async def set_budget(self, *, id: str = "", **budget: Any) -> Record:
        """See sync.Execution.set_budget."""
        return self._kept(await self._client.call(requests.budget(self.id, budget, id=id)))

    async def intents(self, *, states: Sequence[str] = ()) -> AsyncGenerator[IntentAnswer, None]:
        """See sync.Execution.intents."""
        after: int | None = 0
        while after is not None:
            page = await self._client.call(requests.intents(self.id, states=states, after=after))
            for intent in page.intents:
                yield intent
            after = page.next

    async def settle(self, key: str, decision: requests.Decision, *, result: str = "") -> IntentAnswer:
        """See sync.Execution.settle."""
        return await self._client.call(requests.settle(self.id, key, decision, result=result))

    async def exec(self, command: Sequence[str], **options: Any) -> ExecResult:
        """See sync.Execution.exec."""
        return await self._client.call(requests.exec_result(self.id, requests.exec_body(command, **options)))

    def channel(self, *, after: str = "") -> AsyncChannel:
        """See sync.Execution.channel."""
        from orchestrator.client.sockets import AsyncChannel  # 40 ms, for those who use it

        client = self._client
        core = ChannelCore(self.id, after=after)
        return AsyncChannel(client.address, client.token, core, client._watching, client._on_retry)

    def exec_stream(self, command: Sequence[str], **options: Any) -> AsyncGenerator[executing.ExecEvent, None]:
        """See sync.Execution.exec_stream."""
        body = requests.exec_body(command, **options)
        return self._client.items(executing.execute(self.id, body, url=self._client.address.url))

    async def delete(self, *, force: bool = False) -> None:
        """See sync.Execution.delete."""
        await self._client.call(requests.delete(self.id, force=force))
