"""Execution, its Spec and its Outcome: what was asked, where it stands, how it ended. Knows nothing of who stores or
runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal

from orchestrator.harnesses import Harness
from orchestrator.harnesses import OutputMode as OutputMode
from orchestrator.harnesses import StdinMode as StdinMode
from orchestrator.lifecycle import ExecutionState
from orchestrator.snapshots import KeepPolicy, Origin, Why

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB


class OutcomeKind(StrEnum):
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"
    LOST = "LOST"


class Reason(StrEnum):
    """Why it ended so. Stable; statistics are kept by it."""

    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    OOM = "oom"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    IDLE = "idle"
    BUDGET = "budget"
    BAD_CONFIGURATION = "bad_configuration"  # exit code 78
    COMMAND_NOT_FOUND = "command_not_found"  # exit code 126, 127 before anything ran: argv[0] cannot be executed
    IMAGE_MISSING = "image_missing"
    START_FAILED = "start_failed"
    DISK_FULL = "disk_full"
    SANDBOX_LOST = "sandbox_lost"  # the container is gone or was ended from outside
    INIT_LOST = "init_lost"  # the container ended without init's exit record
    HOST_LOST = "host_lost"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended. `exit_code` is the harness's own where it exited, `signal` the number that ended it."""

    kind: OutcomeKind
    reason: Reason
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Resources:
    """What one sandbox may use. `cpus` in cores (0.01 to the host's), no swap, `disk_bytes` 0 = not limited."""

    cpus: float = 1.0
    memory_bytes: int = 1 * GIB
    pids: int = 512
    nofile: int = 4096
    tmp_bytes: int = 256 * MIB
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """What its model calls may cost together; None = no limit. `micros`: millionths of a US dollar. `tokens`: input
    and output, cached input included; a replay counts nothing.

    on_exceeded: `fail` = the call is refused and the execution ends FAILED(budget) after its grace; `wait` = the call
    is held until the budget is raised or the execution is cancelled.
    """

    micros: int | None = None
    tokens: int | None = None
    on_exceeded: Literal["fail", "wait"] = "fail"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much. Seconds; None = no limit. `grace_s`: between SIGTERM and SIGKILL on cancel and deadline,
    and between the call that went over the budget and SIGTERM. `steps` is for the harness to keep (LIMIT_STEPS)."""

    deadline_s: float | None = None
    idle_timeout_s: float | None = None
    grace_s: float = 10.0
    steps: int | None = None
    budget: Budget = field(default_factory=Budget)


@dataclass(frozen=True, slots=True)
class Spend:
    """What its model calls have cost so far, as the gateway counted. `reserved_*`: held for calls that are under way.
    `calls` that reached a provider, `replays` that were answered from the record."""

    micros: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reserved_micros: int = 0
    reserved_tokens: int = 0
    calls: int = 0
    replays: int = 0


@dataclass(frozen=True, slots=True)
class Egress:
    """Where a sandbox may connect to through the proxy, besides model providers: `name`, `*.name` (names below it),
    each with `:port` or without (80 and 443). Empty = nowhere. Addresses are refused: names only."""

    allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """What to do when the platform (never the harness) failed. `max_failures` in a row without progress, then the end.
    After the loss of a sandbox, output is progress; of a harness that is killed only what it never did before: a model
    call that was paid, an intent's end, a message that was delivered.

    on_lost: `auto` = try again only if the harness declared that it can resume; `retry` = always; `end` = LOST.
    on_killed: the same for a harness that a signal nobody sent through Carrel ended (not for want of memory);
    `end` = FAILED(signal).
    """

    max_failures: int = 3
    on_lost: Literal["auto", "retry", "end"] = "auto"
    on_killed: Literal["auto", "retry", "end"] = "auto"
    backoff_s: float = 1.0
    backoff_max_s: float = 60.0


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file to lay into the workspace before the harness starts. `path` relative to /workspace; content by digest."""

    path: str
    sha256: str
    size_bytes: int
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """When snapshots are taken by themselves, besides before every hibernation. `every_s` None = never while it runs.
    `at_end`: when the harness has ended, before the workspace may go; None = where that costs nothing to speak of (a
    store that takes one in no time, or a small workspace)."""

    every_s: float | None = None
    at_end: bool | None = None
    keep: KeepPolicy = field(default_factory=KeepPolicy)


@dataclass(frozen=True, slots=True)
class Spec:
    """What was asked for, as submitted and validated; never changes. Empty `image` = the harness's, else the
    installation's own.

    `harness` names a declaration of the catalogue; `declared` is that as it was at the submit, None for a built-in one.
    `command` is its argv where the harness is `command`. `stdin`, `output` None = as the harness declares.
    """

    task: str = ""
    harness: str = "bash"
    declared: Harness | None = None
    command: tuple[str, ...] = ()
    image: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    files: tuple[FileRef, ...] = ()
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    limits: Limits = field(default_factory=Limits)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    stdin: StdinMode | None = None
    output: OutputMode | None = None
    model: str = ""  # "" = the installation's default
    egress: Egress = field(default_factory=Egress)
    snapshots: SnapshotPolicy = field(default_factory=SnapshotPolicy)
    origin: Origin | None = None  # what it was forked from
    archive: str = ""  # sha256 of an uploaded blob, a snapshot's archive: the files and state it begins with
    tenant: str = "default"


@dataclass(frozen=True, slots=True)
class CancelWant:
    """Somebody wants it ended. The first one wins; a later one may only shorten the grace."""

    id: str
    grace_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PauseWant:
    """The wish for PAUSED (`paused`) or for RUNNING; the last one wins."""

    id: str
    paused: bool


@dataclass(frozen=True, slots=True)
class ResourcesWant:
    """Other resources for the running sandbox; None = as it is. `disk_bytes` 0 = not limited. The last one wins."""

    id: str
    cpus: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class SnapshotWant:
    """A snapshot of it now; `id` is that of the snapshot to be. Its receipt is `snapshot.created` or
    `snapshot.failed`."""

    id: str
    why: Why = Why.ASKED
    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HibernateWant:
    """Cut, and sleep until a message, a resume, an exec or a terminal. Only of a harness that resumes."""

    id: str


@dataclass(frozen=True, slots=True)
class InterruptWant:
    """One SIGINT (or the program's own way). Expires with its attempt."""

    id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class EgressWant:
    """Another allowlist. Stands in the record at once (`Execution.egress`); the gateway takes it from there."""

    id: str
    egress: Egress


@dataclass(frozen=True, slots=True)
class BudgetWant:
    """Another budget. Stands in the record at once (`Execution.budget`) and takes back `over_budget`: a call that is
    held is asked again."""

    id: str
    budget: Budget


@dataclass(frozen=True, slots=True)
class Wants:
    """Level-triggered wishes in the record: read at claim and whenever the owner's bell rings; cleared by their
    receipts."""

    cancel: CancelWant | None = None
    pause: PauseWant | None = None
    hibernate: str | None = None  # the wish's id
    resources: ResourcesWant | None = None
    interrupts: tuple[InterruptWant, ...] = ()
    snapshots: tuple[SnapshotWant, ...] = ()


@dataclass(frozen=True, slots=True)
class Execution:
    """The record, as read at one moment. See architecture.md, "Words"."""

    id: str
    spec: Spec
    state: ExecutionState
    created_at: datetime
    outcome: Outcome | None = None
    attempt: int = 0  # sandboxes so far; 0 = none yet
    epoch: int = 0  # claims so far
    owner: str | None = None  # the worker that holds the lease, if one does
    sandbox_id: str | None = None  # of this attempt, or of the last one
    host: str | None = None  # where that sandbox's slot is
    failures: int = 0  # of the platform, since the last progress
    tail: int = 0  # seq of the last event
    src: int = 0  # last frame of this attempt that is in the history
    own: int = 0  # last append of the worker's own in this epoch
    generation: int = 1  # rises when a history had to begin again
    inbox_tail: int = 0  # number of the last message sent
    delivered: int = 0  # number of the last message written to the harness
    consumed: int = 0  # number of the last message the harness said it used
    wants: Wants = field(default_factory=Wants)
    resources: Resources = field(default_factory=Resources)  # as they are now
    output_mode: OutputMode = "auto"  # as init found it
    snapshot_id: str | None = None  # its newest
    frozen: bool = False  # RUNNING, and idle for so long that it stands still: whatever comes thaws it
    history_archived: bool = False  # its events are in the archive, and not in the store
    egress: Egress = field(default_factory=Egress)  # as it is now
    budget: Budget = field(default_factory=Budget)  # as it is now
    spend: Spend = field(default_factory=Spend)
    over_budget: str = ""  # the figures of the call that was refused or is held; "" = within
    started_at: datetime | None = None  # first RUNNING
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    not_before_at: datetime | None = None  # a retry waits until then

    @property
    def ended(self) -> bool:
        """True once an Outcome is there; it never becomes false again."""
        return self.state is ExecutionState.FINISHED
