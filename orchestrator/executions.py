"""The port of records, queue and leases. Knows no Redis and no HTTP.

An execution is *due* when a worker is needed: queued and ready, or its owner's lease has run out. `claim` hands out the
one that has been due longest and raises its epoch; every later write is fenced by that epoch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from orchestrator.execution import (
    BudgetWant,
    CancelWant,
    EgressWant,
    Execution,
    HibernateWant,
    InterruptWant,
    OutcomeKind,
    PauseWant,
    ResourcesWant,
    SnapshotWant,
    Spec,
    Spend,
)
from orchestrator.history import Lease
from orchestrator.lifecycle import ExecutionState

Want = CancelWant | PauseWant | ResourcesWant | InterruptWant | EgressWant | BudgetWant | SnapshotWant | HibernateWant


#: Bytes through the egress proxies, out of sandboxes and into them.
EGRESS_SENT: Final = "egress_sent_bytes"
EGRESS_RECEIVED: Final = "egress_received_bytes"
COUNTERS: Final = (EGRESS_SENT, EGRESS_RECEIVED)


@dataclass(frozen=True, slots=True)
class Submitted:
    """`created` is False when the idempotency key had been used with the same body: the same execution comes back."""

    execution: Execution
    created: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """One execution, now ours. `deadline_in_s` is what is left of its deadline by the store's logical clock."""

    lease: Lease
    execution: Execution
    deadline_in_s: float | None = None


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing is due. Ask again in `wait_s` seconds at the latest, or when the bell rings."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Filter:
    """What to list. Empty = any. Labels must all match."""

    states: frozenset[ExecutionState] = frozenset()
    outcomes: frozenset[OutcomeKind] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    harness: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """Newest first. `next` is the opaque cursor of the next page, "" at the end."""

    executions: tuple[Execution, ...]
    next: str


@dataclass(frozen=True, slots=True)
class Host:
    """A host's last heartbeat, and the workers heard of lately, by name. `silent_s`: seconds since that heartbeat by
    the store's logical clock: what to judge a host by, since a wall clock that jumps makes it no longer."""

    name: str
    seen_at: datetime
    workers: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    silent_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Repair:
    """One thing the store set right by itself: what, on which execution, why."""

    what: str
    execution_id: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Tally:
    """Outcomes since a moment, for one group (harness, label value or tenant; "" = all), and what their model calls
    cost together. `in_doubt`: their intents of which nobody knows whether they were done, and nobody has settled."""

    group: str
    completed: int
    by_outcome: Mapping[str, int]
    by_reason: Mapping[str, int]
    resumed: int
    wall_s: float
    in_doubt: int = 0
    spend: Spend = field(default_factory=Spend)


class Executions(Protocol):
    """Records, names, queue, leases. Every method raises StoreUnavailable when the store does not answer; by then it
    has retried what is safe to retry (all of these are)."""

    async def submit(
        self, spec: Spec, *, execution_id: str, idempotency_key: str = "", body_digest: str = ""
    ) -> Submitted:
        """Write record, first event and queue place in one step; durable when this returns. `execution_id` is made by
        the caller, so that a lost reply is answered by asking again. Raises KeyReused, NameTaken, TooMany,
        Gone (what this key made was removed since: it is not made again).

        With `spec.origin` it is a fork: `execution.forked` is its second event, its `snapshot_id` is the one it begins
        from, it waits for that one's host unless it is archived, and the journal's intents up to the cut are copied:
        what ended by then stays so, what was under way at the cut is in doubt (unless it may be repeated). `rewind`:
        `spec.name`, which is the other's, is taken over. Raises besides NotFound (no such snapshot of this tenant and
        execution), Gone (that execution was removed), Conflict (to be rewound and not FINISHED).

        A name that moves to a new execution, by a rewind or because its holder has ended, gives it the next
        generation: a cursor into the history of before is Gone in the new one's, with `moved_to`."""

    async def get(self, execution_id: str) -> Execution:
        """The record by its full id. Raises NotFound."""

    async def resolve(self, ref: str, *, tenant: str) -> Execution:
        """By id, by unique prefix of an id (>= 4 characters after `exe_`), or by name. Raises NotFound;
        BadInput(field="id") when the prefix is ambiguous, naming how many match."""

    async def list(self, filter: Filter, *, tenant: str, cursor: str = "", limit: int = 50) -> Listing:
        """A page, newest first. Raises BadInput for a cursor that is not ours."""

    async def want(self, execution_id: str, want: Want) -> Execution:
        """Record a wish, ring its owner; answers the record after it. A CancelWant on an execution nobody needs to stop
        (QUEUED without an owner, HIBERNATED) ends it in the same step. An EgressWant or BudgetWant stands in the
        record when this returns. Same id again: nothing changes. Raises NotFound,
        Conflict (FINISHED, or a state in which the wish makes no sense: the error's `remedy` says what does)."""

    async def remove(self, execution_id: str) -> None:
        """Delete record, history, inbox and indexes of a FINISHED one. Idempotent. Raises Conflict when it has not
        ended."""

    async def claim(self, owner: str, host: str, *, lease_s: float, adopt_only: bool = False) -> Claim | Nothing:
        """Take the execution that has been due longest on `host` or on any: epoch+1, owner, lease. One step.

        The state stays: a QUEUED one becomes STARTING with the owner's first append (trigger CLAIMED, attempt, sandbox
        and host), so that STARTING always means that the record names this attempt's sandbox. Any other state is an
        adoption: `execution.adopted` is written. A HIBERNATED one whose time has come is QUEUED first.

        `adopt_only`: only what has a sandbox on `host`, for a host that has no room; the queue stays as it is, though
        what is to end without a sandbox ends."""

    async def renew(self, lease: Lease) -> None:
        """Extend the lease by its `lease_s` from now. Raises Fenced."""

    async def release(self, lease: Lease) -> None:
        """Give it up untouched, due at once for any worker of its host (drain). Raises Fenced."""

    async def wait(self, owner: str, *, shared: bool, timeout_s: float) -> Sequence[str]:
        """Sleep until a bell rings, at most `timeout_s`. The ids whose owner's bell rang ("*" = look at all of yours);
        an empty sequence when the shared bell rang (something may be claimable) or time ran out. With shared=False
        only the owner's own bell is listened to (a full worker)."""

    async def owner_of_sandbox(self, sandbox_id: str) -> Execution | None:
        """The execution whose record names this sandbox as its current one and whose attempt is not over, else None."""

    async def heartbeat(
        self, host: str, worker: str, facts: Mapping[str, str], *, counted: Mapping[str, int] | None = None
    ) -> None:
        """This worker lives, on this host. `counted`: what is to be added to COUNTERS; where a reply is lost it may be
        added twice."""

    async def counters(self) -> Mapping[str, int]:
        """COUNTERS, of all workers since the installation began."""

    async def hosts(self) -> Sequence[Host]:
        """All hosts with a heartbeat on record."""

    async def evict(self, host: str) -> Sequence[str]:
        """Declare a host lost: each of its executions' attempts is over; answers their ids. The next one begins from
        the newest archived snapshot (`snapshot_id` says which). What only waits or sleeps there, with a snapshot that
        is nowhere else, goes on waiting for it. Sweeper only."""

    async def repair(self) -> Sequence[Repair]:
        """Rebuild the due indexes, names and lists from the records where they disagree; says what it did. Safe at any
        time."""

    async def count(self) -> Mapping[ExecutionState, int]:
        """How many are in each state, of all tenants."""

    async def tally(self, since: datetime, *, by: str = "", tenant: str | None = None) -> Sequence[Tally]:
        """Outcomes of those that finished since then, grouped by "harness", "tenant" or "label:<key>"."""

    async def ended_before(self, moment: datetime, *, limit: int = 1000) -> Sequence[str]:
        """Ids of those that finished before it, longest ago first."""

    def everything(self) -> AsyncIterator[Execution]:
        """Every record once, in no order: for the sweeper."""

    async def ready(self) -> Mapping[str, str]:
        """What is wrong with the store ("" = nothing): keys `store`, `durability`, `schema`. Never raises."""
