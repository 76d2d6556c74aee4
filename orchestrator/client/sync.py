"""The client for programs without an event loop. Carries out the core's steps; decides nothing.

Every method says the same as its twin in `aio.py`; a test compares the two surfaces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
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
from orchestrator.client.answers import HistoryPage
from orchestrator.client.channel import ChannelCore
from orchestrator.client.exchange import Call, Emit, Request, Sleep, Stream
from orchestrator.client.following import Batch
from orchestrator.client.patience import FOR_EVER, Patience
from orchestrator.client.snapshotting import take_snapshot
from orchestrator.client.sync_files import Artifacts, Files
from orchestrator.client.transport import SILENCE_S, SyncTransport
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
    from orchestrator.client.sockets import Channel

T = TypeVar("T")


class Client:
    """One server: at `url`, or without one the one the command line would talk to, with its token (profile.py).
    `patience`: how long a call goes on trying while the server is away (30 s); `watching`: how long a
    follower does (for ever). `on_retry(why, delay_s)` is told of each wait; an open connection that is silent
    for `silence_s` counts as dead. Thread-safe. Close it, or use `with`.

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
        self._transport = SyncTransport(self.address, token, silence_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. Followers end with an error."""
        self._transport.close()

    # -- carrying out ------------------------------------------------------------------------------------------------

    def call(self, request: Request[T]) -> T:
        """Any request of `client.requests`."""
        return self.finish(calls.call(request, self._patience, self._clock, self.address.url))

    def finish(self, steps: Call[T]) -> T:
        """Carry out a question with one answer."""
        with closing(self._transport.line()) as line:
            got: Any = None
            while True:
                try:
                    step = steps.send(got)
                except StopIteration as end:
                    value: T = end.value
                    return value
                if isinstance(step, Sleep) and self._on_retry:
                    self._on_retry(step.why, step.delay_s)
                got = line.step(step)

    def items(self, steps: Stream[T]) -> Iterator[T]:
        """Carry out a question with many answers. Drop the iterator to stop asking."""
        with closing(self._transport.line()) as line:
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
                got = line.step(step)

    # -- the API -----------------------------------------------------------------------------------------------------

    def submit(self, *, key: str = "", **spec: Any) -> Execution:
        """Durable when this returns. `spec`: the fields of POST /executions (task, command, harness, model, image, env,
        files, name, labels, resources, limits, …); besides, `egress` may be a list of names, and `steps`, `budget_usd`,
        `budget_tokens`, `on_budget` need no `limits` around them. `key`: an idempotency key of your own, kept for 7
        days; without one, this call's own retries are safe, a second call makes a second execution. Raises BadInput,
        NameTaken, KeyReused, TooMany."""
        record = self.call(requests.submit(spec, key=key))
        return Execution(self, record.id, record)

    def run(self, task: str, **spec: Any) -> Record:
        """Submit, wait until it has ended, answer the record with its outcome."""
        return self.submit(task=task, **spec).wait()

    def harnesses(self) -> Sequence[HarnessAnswer]:
        """What `harness` may name."""
        return self.call(requests.harnesses()).harnesses

    def get(self, ref: str) -> Execution:
        """By id, unique prefix or name. Raises NotFound."""
        record = self.call(requests.get(ref))
        return Execution(self, record.id, record)

    def execution(self, ref: str) -> Execution:
        """A handle without asking the server."""
        return Execution(self, ref, None)

    def page(self, **filter: Any) -> RecordPage:
        """One page of records, newest first (see requests.find)."""
        return self.call(requests.find(**filter))

    def list(self, **filter: Any) -> Iterator[Record]:
        """All matching records, newest first, page by page."""
        cursor = ""
        while True:
            page = self.page(**filter, cursor=cursor)
            yield from page.executions
            cursor = page.next
            if not cursor:
                return

    def snapshots(self, execution: str = "") -> Iterator[SnapshotAnswer]:
        """All snapshots, or those of one execution, newest first, page by page."""
        cursor = ""
        while True:
            page = self.call(snapshot_requests.snapshots(execution, cursor=cursor))
            yield from page.snapshots
            cursor = page.next
            if not cursor:
                return

    def snapshot(self, ref: str) -> SnapshotAnswer:
        """By id, unique prefix or name. Raises NotFound."""
        return self.call(snapshot_requests.snapshot_record(ref))

    def label_snapshot(
        self, ref: str, *, name: str | None = None, labels: Mapping[str, str] | None = None
    ) -> SnapshotAnswer:
        """Another name ("" = none), other labels; None = as they are. One with a name stays until it is removed. Raises
        NameTaken."""
        return self.call(snapshot_requests.snapshot_words(ref, name=name, labels=labels))

    def export_snapshot(self, ref: str) -> Iterator[bytes]:
        """All it holds, `workspace/` and `state/`, as tar.zst in pieces; for `submit(archive=…)` of the entry that
        `upload` gives. Cannot be continued: a line that breaks is Unavailable."""
        return self.download(lambda *_: snapshot_requests.snapshot_export(ref))

    def delete_snapshot(self, ref: str) -> None:
        """Remove it; what was begun from it stays. Raises Conflict while one that has not ended would begin from it."""
        self.call(snapshot_requests.snapshot_delete(ref))

    def upload(self, source: bytes | Path, path: str, *, mode: int | None = None) -> Mapping[str, Any]:
        """Store content unless it is there; the entry for `submit(files=[…])`."""
        file = uploads.source(source, path, mode=mode)
        if not self.call(file_requests.blob_known(file.sha256)):
            uploads.check(file, self.call(file_requests.blob(file.body)).sha256)
        return file.entry

    def prune(self, **wish: Any) -> Iterator[PruneAnswer]:
        """Remove what is over, part by part: `what` (executions, workspaces, snapshots), `older_than_s`, `states`,
        `outcomes`, `labels`, `all_tenants`, `dry_run` (see POST /prune)."""
        after = ""
        while True:
            answer = self.call(requests.prune({**wish, "after": after or None}))
            yield answer
            if not (after := answer.next):
                return

    def stats(self, *, since: datetime | None = None, by: str = "", disk: bool = False) -> Stats:
        """Outcomes since a moment (see GET /stats); with `disk` what workspaces and snapshots take."""
        return self.call(requests.stats(since=since, by=by, disk=disk))

    def health(self) -> Health:
        """Whether it answers, and its version."""
        return self.call(requests.health())

    def ready(self) -> Readiness:
        """Whether it can do its work, and why not."""
        return self.call(requests.ready())

    def follow(self, ref: str, *, after: str = "", tail: int | None = None) -> Iterator[Batch]:
        """See Execution.batches."""
        steps = following.follow(
            ref, after=after, tail=tail, patience=self._watching, clock=self._clock, url=self.address.url
        )
        return self.items(steps)

    def download(self, request: Callable[[int, str], Request[None]]) -> Iterator[bytes]:
        """Pieces of a file (see downloading.py)."""
        return self.items(
            downloading.download(request, patience=self._patience, clock=self._clock, url=self.address.url)
        )

    def watch(self, request: Request[None]) -> Iterator[changes.Change]:
        """What changes below a directory (see changes.py)."""
        return self.items(changes.watch(request, patience=self._watching, clock=self._clock, url=self.address.url))


class Execution:
    """One execution by its name, from anywhere. `record` is as it was last read; None before the first time."""

    def __init__(self, client: Client, id: str, record: Record | None) -> None:
        self._client = client
        self.id = id
        self.record = record
        self.files = Files(client, id)
        self.artifacts = Artifacts(client, id)

    def _kept(self, record: Record) -> Record:
        self.record = record
        return record

    def refresh(self, *, disk: bool = False) -> Record:
        """The record, now; with `disk` what its workspace takes, too."""
        return self._kept(self._client.call(requests.get(self.id, disk=disk)))

    def wait(self, timeout_s: float | None = None) -> Record:
        """The record once it has ended; as it is when `timeout_s` is over first. Survives restarts of the server."""
        steps = wait_until_ended(
            self.id, timeout_s, patience=self._client._watching, clock=self._client._clock, url=self._client.address.url
        )
        return self._kept(self._client.finish(steps))

    def events(self, *, after: str = "", tail: int | None = None) -> Iterator[Event]:
        """Every event after a cursor or seq (or the last `tail`), then live, until the end: no gap, no repeat, over
        any number of lost connections. Raises Gone where the history begins later."""
        for batch in self.batches(after=after, tail=tail):
            yield from batch.events

    def batches(self, *, after: str = "", tail: int | None = None) -> Iterator[Batch]:
        """The same in batches, with the cursor, "up to date" and "closed"."""
        return self._client.follow(self.id, after=after, tail=tail)

    def history(
        self, *, after: str = "", tail: int | None = None, limit: int = 1000, hold_s: float = 0.0
    ) -> HistoryPage:
        """One page of what is there now."""
        return self._client.call(requests.page(self.id, after=after, tail=tail, limit=limit, hold_s=hold_s))

    def send(self, content: str | bytes, *, id: str = "", mode: str | None = None) -> Receipt:
        """Durable when this returns, delivered once per `id` (made here when empty). Raises Conflict when it has
        ended."""
        return self._client.call(requests.message(self.id, content, id=id, mode=mode))

    def interrupt(self, *, id: str = "") -> Record:
        """SIGINT to the harness's process group (or its own way), now."""
        return self._kept(self._client.call(requests.wish(self.id, "interrupt", id=id)))

    def cancel(self, *, grace_s: float | None = None, reason: str | None = None, id: str = "") -> Record:
        """SIGTERM, `grace_s`, SIGKILL. Durable when this returns; `wait` for the end."""
        return self._kept(self._client.call(requests.wish(self.id, "cancel", id=id, grace_s=grace_s, reason=reason)))

    def pause(self, *, id: str = "") -> Record:
        """Freeze everything in the sandbox."""
        return self._kept(self._client.call(requests.wish(self.id, "pause", id=id)))

    def resume(self, *, id: str = "") -> Record:
        """Thaw it; wake it where it sleeps."""
        return self._kept(self._client.call(requests.wish(self.id, "resume", id=id)))

    def hibernate(self, *, hold_s: float = 0.0, id: str = "") -> Record:
        """A snapshot, then no sandbox, until a message, `resume`, or an exec wakes it. With `hold_s` (at most 60) the
        answer waits until it sleeps. Raises Conflict for a harness that would begin anew."""
        return self._kept(self._client.call(requests.wish(self.id, "hibernate", id=id, hold_s=hold_s)))

    def snapshot(
        self,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        key: str = "",
    ) -> SnapshotAnswer:
        """Files, harness state and history as one cut, while it works on; returns when it is there. Of what sleeps or
        has ended: its newest, with this name. Raises Conflict (none to be had), Unavailable (not there after
        `timeout_s`; None = no limit)."""
        return self._client.finish(
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

    def snapshots(self) -> Iterator[SnapshotAnswer]:
        """Its snapshots, newest first, page by page."""
        return self._client.snapshots(self.id)

    def fork(self, *, count: int = 1, key: str = "", **changes: Any) -> Sequence[Execution]:
        """`count` new executions that begin with its files and harness state as they are now, or as `snapshot` has
        them; it works on. `changes`: the fields of POST …/fork (snapshot, name, labels, task, env, resources, limits,
        egress, model), in the shorter ways of `Client.submit` too. Raises BadInput, NotFound, Conflict, NameTaken."""
        made = self._client.call(snapshot_requests.fork(self.id, {**changes, "count": count}, key=key))
        return [Execution(self._client, record.id, record) for record in made.executions]

    def rewind(self, snapshot: str, *, key: str = "") -> Execution:
        """A fork of this snapshot that takes its name over. One that has not ended is cancelled first, with its own
        grace. Raises BadInput (of another tree), NotFound, Conflict."""
        made = self._client.call(snapshot_requests.rewind(self.id, snapshot, key=key)).executions[0]
        return Execution(self._client, made.id, made)

    def tree(self) -> TreeAnswer:
        """Where it began, and all that came of that: executions, snapshots, and what leads to what."""
        return self._client.call(snapshot_requests.tree(self.id))

    def resources(
        self,
        *,
        cpus: float | None = None,
        memory_bytes: int | None = None,
        pids: int | None = None,
        hold_s: float = 0.0,
        id: str = "",
    ) -> Record:
        """Other limits for the running sandbox. With `hold_s`, waits for the receipt. Raises Infeasible."""
        return self._kept(
            self._client.call(
                requests.resources(self.id, cpus=cpus, memory_bytes=memory_bytes, pids=pids, hold_s=hold_s, id=id)
            )
        )

    def set_egress(self, allow: Sequence[str], *, id: str = "") -> Record:
        """Another allowlist, whole: `name`, `*.name`, each with `:port` or without (80 and 443); empty = nowhere. It
        holds from now on."""
        return self._kept(self._client.call(requests.egress(self.id, allow, id=id)))

    def set_budget(self, *, id: str = "", **budget: Any) -> Record:
        """Another budget, of `budget_usd`, `budget_tokens` (None = no limit) and `on_budget` (`fail`, `wait`); what is
        not given stays. A call that is held for want of money is asked again."""
        return self._kept(self._client.call(requests.budget(self.id, budget, id=id)))

    def intents(self, *, states: Sequence[str] = ()) -> Iterator[IntentAnswer]:
        """The journal, in its order, page by page: all, or those in one of `states` (open, done, failed, in_doubt,
        retry)."""
        after: int | None = 0
        while after is not None:
            page = self._client.call(requests.intents(self.id, states=states, after=after))
            yield from page.intents
            after = page.next

    def settle(self, key: str, decision: requests.Decision, *, result: str = "") -> IntentAnswer:
        """A person's decision on an intent in doubt: `retry`, `done` (with its result), `fail`. Raises NotFound,
        Conflict (it is not in doubt)."""
        return self._client.call(requests.settle(self.id, key, decision, result=result))

    def exec(self, command: Sequence[str], **options: Any) -> ExecResult:
        """One command beside the harness; its bounded output and exit code (options: see requests.exec_body). Never
        repeated by itself."""
        return self._client.call(requests.exec_result(self.id, requests.exec_body(command, **options)))

    def channel(self, *, after: str = "") -> Channel:
        """One socket for both ways, opened again when it breaks: iterate for batches and receipts, `send` to it."""
        from orchestrator.client.sockets import Channel  # 40 ms, for those who use it

        client = self._client
        core = ChannelCore(self.id, after=after)
        return Channel(client.address, client.token, core, client._watching, client._on_retry)

    def exec_stream(self, command: Sequence[str], **options: Any) -> Iterator[executing.ExecEvent]:
        """The same, as it happens; ends with Exited."""
        body = requests.exec_body(command, **options)
        return self._client.items(executing.execute(self.id, body, url=self._client.address.url))

    def delete(self, *, force: bool = False) -> None:
        """Remove record, history and files. Raises Conflict when it has not ended and `force` is not set."""
        self._client.call(requests.delete(self.id, force=force))
