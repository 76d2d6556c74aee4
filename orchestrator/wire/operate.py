"""How the installation does, as JSON: health, readiness, outcomes. Knows no store."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.executions import Host, Tally
from orchestrator.harnesses import Harness, OutputMode, StdinMode
from orchestrator.wire.shape import AnswerModel, Moment
from orchestrator.wire.way_out import SpendAnswer
from orchestrator.workspace import StoreFacts


class Health(AnswerModel):
    status: Literal["ok"] = "ok"
    version: str


class Promises(AnswerModel):
    """`durability`: what is acknowledged survives a kill -9 of the store (promise P1)."""

    durability: bool


class Readiness(AnswerModel):
    """`reasons`: why it is not ready, or what is promised less than usual."""

    ready: bool
    reasons: list[str] = Field(default_factory=list)
    promises: Promises


class OutcomeGroup(AnswerModel):
    """Outcomes since a moment, of one group ("" = all). `in_doubt`: intents of theirs that nobody has settled."""

    group: str
    completed: int
    by_outcome: dict[str, int]
    by_reason: dict[str, int]
    resumed: int
    wall_s: float
    in_doubt: int = 0
    spend: SpendAnswer = Field(default_factory=SpendAnswer)

    @classmethod
    def of(cls, tally: Tally) -> OutcomeGroup:
        return cls(
            group=tally.group,
            completed=tally.completed,
            by_outcome=dict(tally.by_outcome),
            by_reason=dict(tally.by_reason),
            resumed=tally.resumed,
            wall_s=tally.wall_s,
            in_doubt=tally.in_doubt,
            spend=SpendAnswer.of(tally.spend),
        )


class HostAnswer(AnswerModel):
    name: str
    seen_at: Moment
    workers: list[str]
    facts: dict[str, str]

    @classmethod
    def of(cls, host: Host) -> HostAnswer:
        return cls(name=host.name, seen_at=host.seen_at, workers=list(host.workers), facts=dict(host.facts))


class StoreAnswer(AnswerModel):
    """The workspace store of the host that answers. `limits_disk`: it bounds a workspace itself; `instant`: a snapshot
    takes the same time whatever its size. 0 bytes = not known."""

    kind: str
    limits_disk: bool
    instant: bool
    free_bytes: int = 0
    total_bytes: int = 0

    @classmethod
    def of(cls, facts: StoreFacts) -> StoreAnswer:
        return cls(
            kind=facts.kind,
            limits_disk=facts.limits_disk,
            instant=facts.instant,
            free_bytes=facts.free_bytes,
            total_bytes=facts.total_bytes,
        )


class TenantDisk(AnswerModel):
    """What a tenant's workspaces on that host take, and its snapshots anywhere: their whole size, though they share
    what they have in common."""

    tenant: str
    workspaces: int = 0
    used_bytes: int = 0
    snapshots: int = 0
    snapshot_bytes: int = 0


class Stats(AnswerModel):
    """`states` counts what is there now; `groups` what ended since; `disk` only where it was asked for."""

    states: dict[str, int]
    since: Moment
    groups: list[OutcomeGroup]
    hosts: list[HostAnswer]
    store: StoreAnswer | None = None
    disk: list[TenantDisk] = Field(default_factory=list)


class HarnessAnswer(AnswerModel):
    """A declaration of the catalogue. `command`: empty where the submitter brings it. `resumes`: after a loss it goes
    on in its old files. `api`: the one way it speaks to a model, "" = any, or none."""

    name: str
    about: str = ""
    image: str = ""
    command: list[str] = Field(default_factory=list)
    stdin: StdinMode
    output: OutputMode
    resumes: bool
    api: str = ""

    @classmethod
    def of(cls, harness: Harness) -> HarnessAnswer:
        return cls(
            name=harness.name,
            about=harness.about,
            image=harness.image,
            command=list(harness.argv or ()),
            stdin=harness.stdin,
            output=harness.output,
            resumes=harness.resumes,
            api=harness.api,
        )


class HarnessList(AnswerModel):
    harnesses: list[HarnessAnswer]
