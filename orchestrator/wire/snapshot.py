"""Snapshots, forks and the tree they make, as JSON. Knows no store and no directory."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from orchestrator import execution, snapshots
from orchestrator.lifecycle import ExecutionState
from orchestrator.wire import bounds
from orchestrator.wire.record import Record
from orchestrator.wire.shape import AnswerModel, Moment, RequestModel, Text
from orchestrator.wire.submission import Env, LimitsBody, Model, Name, ResourcesBody
from orchestrator.wire.way_out import EgressBody

MOST_FORKS: Final = 100

Labels = Annotated[dict[Text, Text], AfterValidator(bounds.check_labels)]
SnapshotName = Annotated[Text, AfterValidator(bounds.check_snapshot_name)]
SnapshotRef = Annotated[Text, AfterValidator(bounds.check_reference)]


class SnapshotBody(RequestModel):
    """A snapshot of it as it is now. One with a name stays until somebody removes it."""

    name: SnapshotName = ""
    labels: Labels = Field(default_factory=dict)


class SnapshotChange(RequestModel):
    """Other words for a snapshot; what is absent stays, an empty name takes it away."""

    name: SnapshotName | None = None
    labels: Labels | None = None

    @model_validator(mode="after")
    def _something(self) -> SnapshotChange:
        if self.name is None and self.labels is None:
            bounds.refuse("nothing to change", limit="at least one of name, labels", remedy="send one")
        return self


class ForkBody(RequestModel):
    """What shall be different in the fork; what is absent is as the other one has it now. `snapshot` "" = from now.
    `labels` and `env` are added to the other's. `count` forks at once are named `name-1`, `name-2`, …

    `task`: a harness that goes on with earlier work hears it as a message; any other is started with it.
    """

    snapshot: SnapshotRef = ""
    count: int = Field(default=1, ge=1, le=MOST_FORKS)
    name: Name = ""
    labels: Labels = Field(default_factory=dict)
    task: Annotated[Text, AfterValidator(bounds.check_task)] | None = None
    env: Env = Field(default_factory=dict)
    resources: ResourcesBody = Field(default_factory=ResourcesBody)
    limits: LimitsBody = Field(default_factory=LimitsBody)
    egress: EgressBody | None = None
    model: Model | None = None

    def names(self) -> list[str]:
        """One for each fork; "" where it has none."""
        if self.count == 1 or not self.name:
            return [self.name] * self.count
        return [f"{self.name}-{at}" for at in range(1, self.count + 1)]

    @model_validator(mode="after")
    def _names_fit(self) -> ForkBody:
        longest = self.names()[-1]
        if longest and not bounds.NAME.fullmatch(longest):
            bounds.refuse(
                f"name: {longest[:80]!r} cannot be a name", limit=bounds.NAME.pattern, remedy="take a shorter one"
            )
        return self


class RewindBody(RequestModel):
    """Back to this snapshot: a fork that takes the name over. Where the execution has not ended it is ended first."""

    snapshot: SnapshotRef

    @model_validator(mode="after")
    def _named(self) -> RewindBody:
        if not self.snapshot:
            bounds.refuse("snapshot: it is empty", limit="a snapshot", remedy="name one; fork begins from now")
        return self


class CutAnswer(AnswerModel):
    """Where everything stood: attempt, the history's `seq`, the attempt's frame, the last message read, the last intent
    of the journal."""

    attempt: int
    seq: int
    src: int
    inbox: int
    intents: int


class SnapshotAnswer(AnswerModel):
    """One. `parent`: the one before it, or the one its execution was forked from. `digest` "" and sizes 0 until they
    were computed."""

    id: str
    execution_id: str
    tenant: str
    name: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    why: Literal["asked", "periodic", "hibernate", "end", "fork"]
    cut: CutAnswer
    parent: str = ""
    host: str
    store: str
    archived: bool = False
    size_bytes: int = 0
    files: int = 0
    digest: str = ""
    created_at: Moment

    @classmethod
    def of(cls, found: snapshots.Snapshot) -> SnapshotAnswer:
        cut = found.cut
        return cls(
            id=found.id,
            execution_id=found.execution_id,
            tenant=found.tenant,
            name=found.name,
            labels=dict(found.labels),
            why=found.why.value,
            cut=CutAnswer(attempt=cut.attempt, seq=cut.seq, src=cut.src, inbox=cut.inbox, intents=cut.intents),
            parent=found.parent,
            host=found.host,
            store=found.store,
            archived=found.archived,
            size_bytes=found.size_bytes,
            files=found.files,
            digest=found.digest,
            created_at=found.created_at,
        )


class SnapshotListing(AnswerModel):
    """Newest first. `next` is the cursor of the next page, "" at the end."""

    snapshots: list[SnapshotAnswer]
    next: str = ""


class SnapshotReceipt(AnswerModel):
    """`id` is that of the snapshot; `snapshot` is null while it is being taken (event snapshot.created or
    snapshot.failed)."""

    id: str
    snapshot: SnapshotAnswer | None = None


class ForkAnswer(AnswerModel):
    """The new executions, in order, and the snapshot they begin from."""

    snapshot: str
    executions: list[Record]


class ExecutionNode(AnswerModel):
    """An execution of the tree. One that was removed has only its id."""

    id: str
    name: str = ""
    state: ExecutionState | None = None
    outcome: str = ""
    created_at: Moment | None = None

    @classmethod
    def of(cls, id: str, found: execution.Execution | None) -> ExecutionNode:
        if found is None:
            return cls(id=id)
        return cls(
            id=id,
            name=found.spec.name,
            state=found.state,
            outcome=found.outcome.kind.value if found.outcome else "",
            created_at=found.created_at,
        )


class Edge(AnswerModel):
    """`taken`: from an execution to a snapshot of it. `forked`, `rewound`: from a snapshot to the execution that began
    there."""

    kind: Literal["taken", "forked", "rewound"]
    parent: str
    child: str


class TreeAnswer(AnswerModel):
    """Where an execution began, and all that came of that: executions and snapshots, oldest first, and what leads to
    what."""

    root: str
    executions: list[ExecutionNode]
    snapshots: list[SnapshotAnswer]
    edges: list[Edge]
