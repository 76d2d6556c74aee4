"""An execution's record as people get it. Knows no store and no HTTP."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator import execution
from orchestrator.events import Cursor
from orchestrator.execution import OutcomeKind, Reason
from orchestrator.lifecycle import ExecutionState
from orchestrator.wire.shape import AnswerModel, Moment
from orchestrator.wire.submission import LimitsBody, ResourcesBody, RetryBody, SnapshotsBody
from orchestrator.wire.way_out import BudgetAnswer, EgressAnswer, OnBudget, SpendAnswer
from orchestrator.workspace import DiskUse


class OutcomeAnswer(AnswerModel):
    """How it ended. `exit_code`, `signal`: the harness's own, where it has one."""

    kind: OutcomeKind
    reason: Reason
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None

    def noun(self) -> execution.Outcome:
        return execution.Outcome(self.kind, self.reason, self.message, self.exit_code, self.signal)

    @classmethod
    def of(cls, outcome: execution.Outcome) -> OutcomeAnswer:
        return cls(
            kind=outcome.kind,
            reason=outcome.reason,
            message=outcome.message,
            exit_code=outcome.exit_code,
            signal=outcome.signal,
        )


class FileRefAnswer(AnswerModel):
    """A file as submitted. `mode` is octal text."""

    path: str
    sha256: str
    size_bytes: int
    mode: str


class ResourcesAnswer(AnswerModel):
    """What the sandbox may use, as it is now."""

    cpus: float
    memory_bytes: int
    pids: int
    nofile: int
    tmp_bytes: int
    disk_bytes: int

    @classmethod
    def of(cls, resources: execution.Resources) -> ResourcesAnswer:
        return cls.model_validate(ResourcesBody.of(resources).model_dump())


class LimitsAnswer(AnswerModel):
    """As submitted; null = no limit."""

    deadline_s: float | None = None
    idle_timeout_s: float | None = None
    grace_s: float
    steps: int | None = None
    budget_usd: float | None = None
    budget_tokens: int | None = None
    on_budget: OnBudget = "fail"


class RetryAnswer(AnswerModel):
    max_failures: int
    on_lost: str
    on_killed: str = "auto"
    backoff_s: float
    backoff_max_s: float


class Inbox(AnswerModel):
    """Numbers of the last message sent, written to the harness, and used by it as far as it said so."""

    sent: int = 0
    delivered: int = 0
    consumed: int = 0


class CancelAnswer(AnswerModel):
    id: str
    grace_s: float
    reason: str = ""


class PauseAnswer(AnswerModel):
    id: str
    paused: bool


class ResourcesWantAnswer(AnswerModel):
    id: str
    cpus: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    disk_bytes: int | None = None


class InterruptAnswer(AnswerModel):
    id: str
    attempt: int


class SnapshotWantAnswer(AnswerModel):
    """`id`: of the snapshot to be."""

    id: str
    why: str
    name: str = ""


class WantsAnswer(AnswerModel):
    """Wishes that have no receipt yet."""

    cancel: CancelAnswer | None = None
    pause: PauseAnswer | None = None
    hibernate: str | None = None
    resources: ResourcesWantAnswer | None = None
    interrupts: list[InterruptAnswer] = Field(default_factory=list)
    snapshots: list[SnapshotWantAnswer] = Field(default_factory=list)

    @classmethod
    def of(cls, wants: execution.Wants) -> WantsAnswer:
        cancel, pause, resources = wants.cancel, wants.pause, wants.resources
        return cls(
            cancel=CancelAnswer(id=cancel.id, grace_s=cancel.grace_s, reason=cancel.reason) if cancel else None,
            pause=PauseAnswer(id=pause.id, paused=pause.paused) if pause else None,
            hibernate=wants.hibernate,
            resources=ResourcesWantAnswer(
                id=resources.id,
                cpus=resources.cpus,
                memory_bytes=resources.memory_bytes,
                pids=resources.pids,
                disk_bytes=resources.disk_bytes,
            )
            if resources
            else None,
            interrupts=[InterruptAnswer(id=want.id, attempt=want.attempt) for want in wants.interrupts],
            snapshots=[SnapshotWantAnswer(id=want.id, why=want.why, name=want.name) for want in wants.snapshots],
        )


class KeepAnswer(AnswerModel):
    last: int
    days: int


class SnapshotsAnswer(AnswerModel):
    """When they are taken by themselves, besides before every sleep, and which of those stay."""

    every_s: float | None = None
    at_end: bool | None = None
    keep: KeepAnswer


class OriginAnswer(AnswerModel):
    """The snapshot it began from; `rewind`: it took the name over."""

    execution_id: str
    snapshot_id: str
    seq: int
    rewind: bool = False


class DiskAnswer(AnswerModel):
    """What its workspace takes, as its host's store says; `limit_bytes` 0 = none, `files` null = not counted."""

    used_bytes: int
    limit_bytes: int = 0
    files: int | None = None

    @classmethod
    def of(cls, use: DiskUse) -> DiskAnswer:
        return cls(used_bytes=use.used_bytes, limit_bytes=use.limit_bytes, files=use.files)


class Record(AnswerModel):
    """One execution at one moment: what was asked, where it stands, how it ended."""

    id: str
    name: str = ""
    tenant: str
    state: ExecutionState
    outcome: OutcomeAnswer | None = None
    attempt: int = 0
    epoch: int = 0
    owner: str | None = None
    host: str | None = None
    sandbox_id: str | None = None
    failures: int = 0
    task: str = ""
    harness: str
    command: list[str] = Field(default_factory=list)
    image: str = ""
    env: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    files: list[FileRefAnswer] = Field(default_factory=list)
    resources: ResourcesAnswer
    limits: LimitsAnswer
    retry: RetryAnswer
    stdin: Literal["none", "text", "jsonl"] | None = None
    output: Literal["auto", "bytes", "jsonl"] | None = None
    model: str = ""
    egress: EgressAnswer = Field(default_factory=EgressAnswer)
    budget: BudgetAnswer = Field(default_factory=BudgetAnswer)
    spend: SpendAnswer = Field(default_factory=SpendAnswer)
    over_budget: str = Field(default="", description='figures of the call that was refused or is held; "" = within')
    snapshots: SnapshotsAnswer | None = None
    snapshot_id: str | None = Field(default=None, description="its newest")
    frozen: bool = Field(default=False, description="RUNNING, and idle: it stands still until something comes")
    forked_from: OriginAnswer | None = None
    disk: DiskAnswer | None = Field(
        default=None, description="only where it was asked for, on the workspace's own host"
    )
    waits_for: str = Field(default="", description='why it is not begun yet, where that is for want of room; "" = not')
    tail: int = 0
    generation: int = 1
    cursor: str = Field(description="the place in the history right after its last event, as `?after=` takes it")
    inbox: Inbox = Field(default_factory=Inbox)
    wants: WantsAnswer = Field(default_factory=WantsAnswer)
    created_at: Moment
    started_at: Moment | None = None
    finished_at: Moment | None = None
    deadline_at: Moment | None = None
    not_before_at: Moment | None = None

    @property
    def ended(self) -> bool:
        return self.state is ExecutionState.FINISHED

    @classmethod
    def of(cls, found: execution.Execution, disk: DiskUse | None = None) -> Record:
        spec, origin = found.spec, found.spec.origin
        return cls(
            id=found.id,
            name=spec.name,
            tenant=spec.tenant,
            state=found.state,
            outcome=OutcomeAnswer.of(found.outcome) if found.outcome else None,
            attempt=found.attempt,
            epoch=found.epoch,
            owner=found.owner,
            host=found.host,
            sandbox_id=found.sandbox_id,
            failures=found.failures,
            task=spec.task,
            harness=spec.harness,
            command=list(spec.command),
            image=spec.image,
            env=dict(spec.env),
            labels=dict(spec.labels),
            files=[
                FileRefAnswer(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes, mode=f"{file.mode:04o}")
                for file in spec.files
            ],
            resources=ResourcesAnswer.of(found.resources),
            limits=LimitsAnswer.model_validate(LimitsBody.of(spec.limits).model_dump()),
            retry=RetryAnswer.model_validate(RetryBody.of(spec.retry).model_dump()),
            stdin=spec.stdin,
            output=spec.output,
            model=spec.model,
            egress=EgressAnswer(allow=list(found.egress.allow)),
            budget=BudgetAnswer.of(found.budget),
            spend=SpendAnswer.of(found.spend),
            over_budget=found.over_budget,
            snapshots=SnapshotsAnswer.model_validate(SnapshotsBody.of(spec.snapshots).model_dump()),
            snapshot_id=found.snapshot_id,
            frozen=found.frozen,
            forked_from=OriginAnswer(
                execution_id=origin.execution_id,
                snapshot_id=origin.snapshot_id,
                seq=origin.seq,
                rewind=origin.rewind,
            )
            if origin
            else None,
            disk=DiskAnswer.of(disk) if disk else None,
            tail=found.tail,
            generation=found.generation,
            cursor=str(Cursor(found.generation, found.tail)),
            inbox=Inbox(sent=found.inbox_tail, delivered=found.delivered, consumed=found.consumed),
            wants=WantsAnswer.of(found.wants),
            created_at=found.created_at,
            started_at=found.started_at,
            finished_at=found.finished_at,
            deadline_at=found.deadline_at,
            not_before_at=found.not_before_at,
        )


class RecordPage(AnswerModel):
    """Newest first. `next` is the cursor of the next page, "" at the end."""

    executions: list[Record]
    next: str = ""
