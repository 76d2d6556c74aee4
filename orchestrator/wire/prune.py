"""A wish to prune and what came of it, as JSON. Knows no store."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from orchestrator.execution import OutcomeKind
from orchestrator.lifecycle import ExecutionState
from orchestrator.pruning import Kind, Wish
from orchestrator.wire import bounds
from orchestrator.wire.shape import AnswerModel, RequestModel

MOST_AT_ONCE = 200
_LONGEST_S = 100 * 365 * 86_400


class PruneBody(RequestModel):
    """`what`: kinds; by default ended executions with all that is theirs. `older_than_s`: since the end, of a snapshot
    since it was taken; snapshots without it: those that their policy does not keep. `after`: `next` of the answer
    before: one request takes so many and says where to go on."""

    what: Annotated[list[Annotated[Kind, Field(strict=False)]], Field(min_length=1, max_length=3)] = Field(
        default_factory=lambda: [Kind.EXECUTIONS]
    )
    older_than_s: Annotated[float, Field(ge=0, le=_LONGEST_S, allow_inf_nan=False)] | None = None
    states: Annotated[list[Annotated[ExecutionState, Field(strict=False)]], Field(max_length=16)] = Field(
        default_factory=list
    )
    outcomes: Annotated[list[Annotated[OutcomeKind, Field(strict=False)]], Field(max_length=16)] = Field(
        default_factory=list
    )
    labels: Annotated[dict[str, str], Field(max_length=bounds.LABEL_COUNT)] = Field(default_factory=dict)
    all_tenants: bool = False
    dry_run: bool = False
    limit: Annotated[int, Field(ge=1, le=MOST_AT_ONCE)] = MOST_AT_ONCE
    after: Annotated[str, Field(max_length=128)] = ""

    def wish(self) -> Wish:
        return Wish(
            frozenset(self.what), self.older_than_s, frozenset(self.states), frozenset(self.outcomes), self.labels
        )


class PrunedItem(AnswerModel):
    """One that went, or would. `id`: of the execution (also of its workspace) or the snapshot. `size_bytes`: what it
    held on this host; `elsewhere`: hosts whose sweeper removes the rest."""

    kind: Kind
    id: str
    name: str = ""
    tenant: str
    size_bytes: int = 0
    elsewhere: list[str] = Field(default_factory=list)


class KeptItem(AnswerModel):
    """One that was meant, and stays."""

    kind: Kind
    id: str
    why: str


class PruneAnswer(AnswerModel):
    """`next` goes into `after`, "" when all was looked at."""

    dry_run: bool
    pruned: list[PrunedItem]
    kept: list[KeptItem]
    freed_bytes: int
    next: str = ""
