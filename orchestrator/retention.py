"""What has had its time: which snapshots and ended executions may go. Pure; knows no store, no clock and no files.

What somebody asked for, or gave a name, stays until somebody removes it; so does what an execution that has not ended
would begin its next attempt from. The rest goes by the KeepPolicy of its execution.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

from orchestrator.execution import Execution
from orchestrator.snapshots import KeepPolicy, Snapshot, Why

#: Taken by themselves, or on the way to something that has its own copy by now.
_BY_POLICY: Final = frozenset({Why.PERIODIC, Why.HIBERNATE, Why.FORK})


def wished(snapshot: Snapshot) -> bool:
    """Somebody asked for it or named it: no policy removes it."""
    return snapshot.why is Why.ASKED or bool(snapshot.name)


def snapshots_over(of_one: Iterable[Snapshot], policy: KeepPolicy, *, needed: Collection[str]) -> tuple[str, ...]:
    """Ids of those of one execution that may go, oldest first. `needed`: ids somebody would begin from. Of those that
    go by the policy the newest `last` stay, and of each of the newest `days` days (UTC) that have any, its last. The
    one taken at the end stays as long as the execution's record."""
    subject = [each for each in of_one if each.why in _BY_POLICY and not wished(each)]
    newest_first = sorted(subject, key=lambda each: (each.created_at, each.id), reverse=True)
    last_of_day: dict[date, str] = {}
    for each in newest_first:
        last_of_day.setdefault(each.created_at.astimezone(UTC).date(), each.id)
    kept = {each.id for each in newest_first[: policy.last]}
    kept.update([*last_of_day.values()][: policy.days])
    kept.update(needed)
    return tuple(each.id for each in reversed(newest_first) if each.id not in kept)


def all_snapshots_over(executions: Iterable[Execution], snapshots: Iterable[Snapshot]) -> tuple[str, ...]:
    """The same over everything. `executions` were read after `snapshots`. One whose execution was removed was kept only
    for who was still to begin from it: it goes when nobody is."""
    records = {record.id: record for record in executions}
    needed = {record.snapshot_id for record in records.values() if record.snapshot_id and not record.ended}
    groups: defaultdict[str, list[Snapshot]] = defaultdict(list)
    for each in snapshots:
        groups[each.execution_id].append(each)
    over: list[str] = []
    for execution_id, group in groups.items():
        if record := records.get(execution_id):
            over += snapshots_over(group, record.spec.snapshots.keep, needed=needed)
        else:
            over += (each.id for each in group if each.id not in needed)
    return tuple(over)


def workspaces_over(executions: Iterable[Execution], *, now: datetime, retention_s: float) -> tuple[Execution, ...]:
    """Those that ended more than `retention_s` seconds ago, longest ago first; 0 = none: their workspaces may go."""
    if not retention_s:
        return ()
    before = now - timedelta(seconds=retention_s)
    over = [record for record in executions if record.ended and record.finished_at and record.finished_at < before]
    return tuple(sorted(over, key=lambda record: (record.finished_at, record.id)))


def executions_over(
    executions: Iterable[Execution], snapshots: Sequence[Snapshot], *, now: datetime, retention_s: float
) -> tuple[str, ...]:
    """Ids of those that ended more than `retention_s` seconds ago, longest ago first; 0 = none. Not one with a snapshot
    somebody wished for: that goes with its execution, so its execution stays with it."""
    if not retention_s:
        return ()
    before = now - timedelta(seconds=retention_s)
    held = {each.execution_id for each in snapshots if wished(each)}
    ended = [
        (record.finished_at, record.id)
        for record in executions
        if record.ended and record.finished_at and record.finished_at < before and record.id not in held
    ]
    return tuple(execution_id for _, execution_id in sorted(ended))
