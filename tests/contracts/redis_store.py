"""A store on a real server, and the steps that tests of the store's ports take with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from orchestrator.events import Cursor, Entry, Event
from orchestrator.execution import Outcome, OutcomeKind, Reason, Spec
from orchestrator.executions import Claim
from orchestrator.history import Appended, Change, Lease, Spooled
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.snapshots import Cut, Snapshot, Why
from orchestrator.stores.redis import (
    Keys,
    RedisCalls,
    RedisExecutions,
    RedisHistory,
    RedisIntents,
    RedisSnapshots,
    Server,
)
from orchestrator.stores.redis.connection import Argument

SUCCEEDED = Outcome(OutcomeKind.SUCCEEDED, Reason.EXIT_CODE, exit_code=0)


class LosesReplies(Server):
    """A line that loses the next reply when told to: the script has run, and is sent again. `sent` is the last one."""

    lose = False
    sent: tuple[str, tuple[Argument, ...]] = ("", ())

    async def run(self, name: str, *args: Argument) -> list[Any]:
        self.sent = (name, args)
        if self.lose:
            self.lose = False
            await super().run(name, *args)
        return await super().run(name, *args)


@dataclass
class Store:
    """One installation's store, and the steps that tests take with it."""

    server: Server
    keys: Keys
    executions: RedisExecutions
    history: RedisHistory

    @cached_property
    def calls(self) -> RedisCalls:
        return RedisCalls(self.server, self.keys)

    @cached_property
    def intents(self) -> RedisIntents:
        return RedisIntents(self.server, self.keys)

    @cached_property
    def snapshots(self) -> RedisSnapshots:
        return RedisSnapshots(self.server, self.keys)

    async def submitted(self, execution_id: str = "exe_a", **spec: object) -> str:
        made = await self.executions.submit(replace(Spec(), **spec), execution_id=execution_id)  # type: ignore[arg-type]
        return made.execution.id

    async def claimed(self, owner: str = "w1", host: str = "h1", lease_s: float = 15.0) -> Claim:
        claim = await self.executions.claim(owner, host, lease_s=lease_s)
        assert isinstance(claim, Claim)
        return claim

    async def running(self, execution_id: str = "exe_a", **spec: object) -> Lease:
        """Submitted, claimed, placed as attempt 1 on h1, started: own 1 and 2 are used."""
        await self.submitted(execution_id, **spec)
        claim = await self.claimed()
        assert claim.execution.id == execution_id
        await self.place(claim.lease, own=1)
        await self.move(claim.lease, Trigger.HARNESS_STARTED, own=2, started=True)
        return claim.lease

    async def place(self, lease: Lease, *, own: int, attempt: int = 1, host: str = "h1") -> Appended:
        sandbox_id = f"sbx_{lease.execution_id}_{attempt}"
        return await self.history.append(
            lease,
            attempt=attempt,
            own=own,
            entries=[Entry("sandbox.placed", {"sandbox_id": sandbox_id, "host": host})],
            change=Change(
                trigger=Trigger.CLAIMED,
                expects=ExecutionState.QUEUED,
                attempt=attempt,
                sandbox_id=sandbox_id,
                host=host,
            ),
        )

    async def move(self, lease: Lease, trigger: Trigger, *, own: int, attempt: int = 1, **change: object) -> Appended:
        return await self.history.append(
            lease,
            attempt=attempt,
            own=own,
            change=replace(Change(trigger=trigger), **change),  # type: ignore[arg-type]
        )

    async def finish(self, lease: Lease, *, own: int, outcome: Outcome = SUCCEEDED) -> Appended:
        """From RUNNING; uses own and own + 1."""
        await self.move(lease, Trigger.EXITED, own=own)
        return await self.move(lease, Trigger.STOPPED, own=own + 1, outcome=outcome)

    async def cut(self, lease: Lease, snapshot_id: str, *, own: int, **fields: object) -> Snapshot:
        """A snapshot as a worker writes it, with the event that says so."""
        snapshot = snapshot_of(lease, snapshot_id, **fields)
        await self.history.append(
            lease,
            attempt=snapshot.cut.attempt,
            own=own,
            entries=[Entry("snapshot.created", {"id": snapshot_id})],
            change=Change(snapshot=snapshot),
        )
        return snapshot

    async def next_attempt(self, lease: Lease, *, own: int, attempt: int = 2) -> Lease:
        """The sandbox is lost; another attempt runs under another epoch, whose own 1 and 2 are used. From RUNNING."""
        await self.move(lease, Trigger.SANDBOX_LOST, own=own, attempt=attempt - 1, failures=1)
        claim = await self.claimed("w2")
        await self.place(claim.lease, own=1, attempt=attempt)
        await self.move(claim.lease, Trigger.HARNESS_STARTED, own=2, attempt=attempt)
        return claim.lease

    async def adopted(self) -> Lease:
        """Its owner has died; another goes on with the same attempt."""
        await self.pass_time(16)
        return (await self.claimed("w2")).lease

    async def told(self, *types: str, execution_id: str = "exe_a") -> list[Event]:
        """The events of these types, in order. Checks on the way that nothing is missing in seq."""
        found: list[Event] = []
        cursor = Cursor()
        while True:
            page = await self.history.read(execution_id, cursor)
            assert [e.seq for e in page.events] == list(range(cursor.seq + 1, cursor.seq + 1 + len(page.events)))
            found += [e for e in page.events if e.type in types]
            cursor = page.next
            if cursor.seq >= page.tail:
                return found

    async def pass_time(self, seconds: float) -> None:
        """Let the store's logical clock stand that much later: nobody has to wait for a lease."""
        meta = await self.server.ask("HGET", self.keys.meta, "now")
        await self.server.ask("HSET", self.keys.meta, "now", int(meta) + round(seconds * 1000))

    async def state(self, execution_id: str) -> ExecutionState:
        return (await self.executions.get(execution_id)).state


def snapshot_of(lease: Lease, snapshot_id: str, **fields: object) -> Snapshot:
    """One on h1, of attempt 1, of which nothing is said but what `fields` say."""
    plain = Snapshot(
        id=snapshot_id,
        execution_id=lease.execution_id,
        tenant="default",
        why=Why.ASKED,
        cut=Cut(attempt=1, seq=4, src=0, inbox=0, intents=0),
        sandbox_id=f"sbx_{lease.execution_id}_1",
        host="h1",
        store="directory",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return replace(plain, **fields)  # type: ignore[arg-type]


def lines(first_src: int, last_src: int, *, text: str = "line") -> Spooled:
    """Frames of one output entry each, whose body says their src."""
    return Spooled(
        first_src,
        last_src,
        [
            Entry("output", {"stream": "stdout"}, f"{text} {src}\n".encode(), "harness", src)
            for src in range(first_src, last_src + 1)
        ],
    )
