"""What somebody wants gone, and what of it may go. Pure; knows no store and no files.

As `retention` has it: what has not ended is never touched, nor a snapshot that such a one would begin from, nor one
somebody asked for or named, nor the execution that goes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from orchestrator.execution import Execution, OutcomeKind
from orchestrator.lifecycle import ExecutionState
from orchestrator.retention import all_snapshots_over, wished
from orchestrator.snapshots import Snapshot


class Kind(StrEnum):
    """In the order in which they go."""

    EXECUTIONS = "executions"
    WORKSPACES = "workspaces"
    SNAPSHOTS = "snapshots"


@dataclass(frozen=True, slots=True)
class Wish:
    """Which kinds, of which executions; empty = any. Labels must all match. `older_than_s`: since its end, of a
    snapshot since it was taken. Snapshots without it: those their execution's policy does not keep."""

    kinds: frozenset[Kind]
    older_than_s: float | None = None
    states: frozenset[ExecutionState] = frozenset()
    outcomes: frozenset[OutcomeKind] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def selects(self) -> bool:
        """Whether it asks for anything of an execution's record."""
        return bool(self.states or self.outcomes or self.labels)

    def fits(self, record: Execution) -> bool:
        if self.states and record.state not in self.states:
            return False
        if self.outcomes and (record.outcome is None or record.outcome.kind not in self.outcomes):
            return False
        return all(record.spec.labels.get(key) == value for key, value in self.labels.items())


@dataclass(frozen=True, slots=True)
class Going:
    """One thing that may go; `snapshot` None = it is the execution, or its workspace. `stays`: why it does not."""

    kind: Kind
    execution: Execution | None
    snapshot: Snapshot | None = None
    stays: str = ""

    @property
    def id(self) -> str:
        if self.snapshot is not None:
            return self.snapshot.id
        assert self.execution is not None  # only a snapshot outlives its execution
        return self.execution.id

    @property
    def place(self) -> str:
        """Where it is in the order, for going on after it."""
        return f"{list(Kind).index(self.kind)}:{self.id}"


def prune_plan(
    executions: Sequence[Execution], snapshots: Sequence[Snapshot], wish: Wish, *, now: datetime
) -> tuple[Going, ...]:
    """In the order of their places. `executions`: all of the tenants concerned, read after `snapshots`."""
    before = now - timedelta(seconds=min(wish.older_than_s or 0.0, now.timestamp()))
    over = [one for one in executions if one.ended and wish.fits(one) and (one.finished_at or one.created_at) <= before]
    wishes = {one.execution_id: one.id for one in snapshots if wished(one)}
    found: list[Going] = []
    if Kind.EXECUTIONS in wish.kinds:
        for one in over:
            held = wishes.get(one.id)
            stays = f"its snapshot {held} was asked for, or has a name: remove that first" if held else ""
            found.append(Going(Kind.EXECUTIONS, one, stays=stays))
    whole = {going.id for going in found if not going.stays}
    if Kind.WORKSPACES in wish.kinds:
        found += (Going(Kind.WORKSPACES, one) for one in over if one.id not in whole and one.sandbox_id)
    if Kind.SNAPSHOTS in wish.kinds:
        found += _snapshots(executions, snapshots, wish, before, whole)
    return tuple(sorted(found, key=lambda going: going.place))


def _snapshots(
    executions: Sequence[Execution], snapshots: Sequence[Snapshot], wish: Wish, before: datetime, whole: set[str]
) -> list[Going]:
    records = {one.id: one for one in executions}
    needed = {one.snapshot_id for one in executions if one.snapshot_id and not one.ended}
    by_policy = set(all_snapshots_over(executions, snapshots)) if wish.older_than_s is None else None
    found = []
    for one in snapshots:
        record = records.get(one.execution_id)
        fits = wish.fits(record) if record is not None else not wish.selects
        spared = wished(one) or one.id in needed if by_policy is None else one.id not in by_policy
        if fits and not spared and one.created_at <= before and one.execution_id not in whole:
            found.append(Going(Kind.SNAPSHOTS, record, one))
    return found
