"""How the installation does, as JSON: health, readiness, outcomes. Knows no store."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.executions import Host, Tally
from orchestrator.harnesses import Harness, OutputMode, StdinMode
from orchestrator.wire.shape import AnswerModel, Moment
from orchestrator.wire.way_out import SpendAnswer


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


class Stats(AnswerModel):
    """`states` counts what is there now; `groups` what ended since."""

    states: dict[str, int]
    since: Moment
    groups: list[OutcomeGroup]
    hosts: list[HostAnswer]


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
