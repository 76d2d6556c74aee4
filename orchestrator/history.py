"""The port of one execution's channel: its history out, its inbox in. Knows no Redis and no HTTP.

What clients may rely on is settled in the design's channel page: contiguous seq from 1, explicit gaps, an explicit
end, a message id delivers once. One contract suite (tests/contracts) runs against every implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from orchestrator.events import Cursor, Entry, Event
from orchestrator.execution import Outcome, OutputMode, Resources
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.snapshots import Snapshot


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write: who, for which execution, under which epoch. Held by one worker until `lease_s` after
    renewal."""

    execution_id: str
    epoch: int
    owner: str
    lease_s: float


@dataclass(frozen=True, slots=True)
class Change:
    """What an append changes in the record, in the same step as its entries. None / empty = left as it is.

    `trigger` moves the state by `lifecycle.TRANSITIONS`; the script refuses it (Conflict) unless the record's state is
    `expects`. `delivered` and `consumed` only ever rise. `not_before_ms` is when an unowned execution is next due.
    `unowned` gives the lease up in the same step (QUEUED again, HIBERNATED, FINISHED). `outcome` goes with FINISHED and
    writes the end marker. `seen` goes with HIBERNATED: a later message turns it into QUEUED, due now.
    """

    trigger: Trigger | None = None
    expects: ExecutionState | None = None
    outcome: Outcome | None = None
    attempt: int | None = None
    sandbox_id: str | None = None
    host: str | None = None
    failures: int | None = None
    delivered: int | None = None
    consumed: int | None = None
    output_mode: OutputMode | None = None
    resources: Resources | None = None
    frozen: bool | None = None  # of a RUNNING one; a transition makes it False
    started: bool = False  # sets started_at, if it is not set
    not_before_ms: int | None = None
    unowned: bool = False
    seen: int | None = None
    # Its record, written in the same step; it becomes `snapshot_id`, and a wish with its id is done. Conflict where the
    # id is there already.
    snapshot: Snapshot | None = None
    done_wants: tuple[str, ...] = ()  # ids of wishes that have their receipt now


@dataclass(frozen=True, slots=True)
class Appended:
    """After an append: the history's last seq, the last frame it has, and the state."""

    tail: int
    src: int
    state: ExecutionState
    repeated: bool = False  # this call had been applied before; nothing was written now


@dataclass(frozen=True, slots=True)
class Page:
    """Events in order, beginning right after the cursor asked for. `closed`: the last event is the end, for ever."""

    events: tuple[Event, ...]
    tail: int
    closed: bool
    generation: int = 1

    @property
    def next(self) -> Cursor:
        """Where to go on. With no events: the caller's own cursor still holds (see tail)."""
        return Cursor(self.generation, self.events[-1].seq if self.events else self.tail)


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of the inbox. `n` is contiguous from 1; `id` is the sender's, unique within the execution."""

    n: int
    id: str
    body: bytes
    mode: str = "steer"  # or follow_up
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """The receipt of a send: the message's number, and whether this id had been sent before."""

    n: int
    repeated: bool
    seq: int = 0  # of its message.accepted event; 0 where repeated and not known


@dataclass(frozen=True, slots=True)
class Spooled:
    """Frames first_src..last_src of the current attempt as entries (each with its `src`; a frame may yield none or
    several)."""

    first_src: int
    last_src: int
    entries: Sequence[Entry] = field(default_factory=tuple)


class History(Protocol):
    """The channel of executions, by id. All methods raise StoreUnavailable when the store does not answer."""

    async def append(
        self,
        lease: Lease,
        *,
        attempt: int,
        spooled: Spooled | None = None,
        own: int | None = None,
        entries: Sequence[Entry] = (),
        change: Change | None = None,
    ) -> Appended:
        """Write frames (`spooled`), then the worker's own `entries`, and `change` the record: all of it or nothing.

        Idempotent: of `spooled`, entries with src <= the recorded one (for this attempt) are dropped; `own` numbers the
        worker's own calls within its epoch from 1, and a call whose own <= the recorded one writes nothing of `entries`
        and `change` and answers `repeated`. `entries` or `change` need `own` (a change of only `delivered`, `consumed`
        or `output_mode` does not). At most 4096 entries and 4 MiB of body in a call.

        What the store writes itself, in the same step, after `entries`: one `execution.state` for a trigger,
        `execution.finished` and the end marker for FINISHED.

        Raises Fenced (another epoch owns it, or this lease was given up), Closed (it has ended), Resend
        (spooled.first_src > recorded src + 1), Conflict (the state is not `change.expects`),
        lifecycle.IllegalTransition.
        """

    async def read(self, execution_id: str, after: Cursor, *, limit: int = 1000, max_bytes: int = 4 << 20) -> Page:
        """A page of events with seq > after.seq, at once. Raises NotFound; Gone when `after` is before what is kept,
        beyond the tail, or of another generation (unless an older one's seq 0: nothing was read); with `moved_to` (this
        execution) and `moved_from` where it belongs to the one that had the name before."""

    def follow(self, execution_id: str, after: Cursor, *, max_bytes: int = 1 << 20) -> AsyncIterator[Page]:
        """Pages from `after` on, live, without gap or repeat, until the closing one. An empty page is sent at once
        when there is nothing to read yet ("up to date"), later only with events. Errors as `read`; StoreUnavailable
        after the store has been away for longer than its patience (5 s): follow again from the last cursor. A consumer
        that does not keep up holds nothing but its own cursor: pages are read when asked for.
        """

    async def hand_over(self, execution_id: str) -> None:
        """All of it is in the archive: its events go from here, and are read there by the same cursors. Idempotent.
        Raises NotFound, Conflict (it has not ended)."""

    async def tail(self, execution_id: str) -> Page:
        """Where the history stands: a page without events. Raises NotFound."""

    async def send(self, execution_id: str, message_id: str, body: bytes, *, mode: str = "steer") -> Sent:
        """Put a message into the inbox: durable when this returns, once per id, `message.accepted` written in the same
        step. Wakes the owner, or queues a HIBERNATED execution. Raises NotFound, Conflict (FINISHED or STOPPING),
        KeyReused (same id, other body), TooMany (100,000 ids)."""

    async def inbox(self, execution_id: str, after: int, *, limit: int = 64, max_bytes: int = 1 << 20) -> list[Message]:
        """Messages with n > after, in order."""
