"""What a sweep should remove, from what exists and what the records say. Pure.

Removes only what is certain: under our label or in our directory, old enough, and named by no record. A store that
knows no execution at all proves nothing about what exists here (it may have been emptied): then nothing is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.execution import Execution
from orchestrator.lifecycle import ASLEEP, WITH_SANDBOX
from orchestrator.sandbox import Found
from orchestrator.snapshots import Snapshot


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """`sandboxes`, `slots`: ids to remove. `stale`: slots kept for their files only. `distrusted`: there would have
    been something to remove, but the store knows nothing."""

    sandboxes: tuple[str, ...] = ()
    slots: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    distrusted: bool = False


def sweep_plan(
    found: Sequence[Found],
    slots: Sequence[tuple[str, datetime]],
    records: Sequence[Execution],
    *,
    now: datetime,
    orphan_grace_s: float,
) -> SweepPlan:
    """`records`: all there are, read after `found` and `slots`. A sandbox belongs to the record that names it while its
    attempt is not over; a slot to any record that names it."""
    old = now - timedelta(seconds=orphan_grace_s)
    living = {record.sandbox_id for record in records if record.state in WITH_SANDBOX}
    named = {record.sandbox_id for record in records}
    boxes = tuple(box.sandbox_id for box in found if box.sandbox_id not in living and box.created_at <= old)
    folders = tuple(slot for slot, made_at in slots if slot not in named and made_at <= old)
    if not records:
        return SweepPlan(distrusted=bool(boxes or folders))
    asleep = {record.sandbox_id for record in records if record.state in ASLEEP}
    stale = tuple(slot for slot, made_at in slots if slot in asleep and made_at <= old)
    return SweepPlan(boxes, folders, stale)


@dataclass(frozen=True, slots=True)
class SnapshotPlan:
    """`orphans`: ids of snapshots no record names. `gone`: records of this host whose files are not there, nor in the
    archive: they promise what nobody can have. `unread`: those nobody has computed the digest of."""

    orphans: tuple[str, ...] = ()
    gone: tuple[Snapshot, ...] = ()
    unread: tuple[Snapshot, ...] = ()


def snapshot_plan(
    there: Sequence[tuple[str, datetime]], records: Sequence[Snapshot], *, now: datetime, orphan_grace_s: float
) -> SnapshotPlan:
    """`records`: all of this host, read after `there`, which are the snapshots in its store. What is young may be on
    its way: files come to their name before their record does."""
    old = now - timedelta(seconds=orphan_grace_s)
    named, files = {record.id for record in records}, {snapshot_id for snapshot_id, _ in there}
    return SnapshotPlan(
        tuple(snapshot_id for snapshot_id, made_at in there if snapshot_id not in named and made_at <= old),
        tuple(r for r in records if r.id not in files and not r.archived and r.created_at <= old),
        tuple(r for r in records if r.id in files and not r.digest),
    )
