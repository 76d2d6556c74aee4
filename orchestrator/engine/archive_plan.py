"""What goes into the archive and what may leave it, from what the records say and what lies there. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.archive import HISTORIES, MANIFEST, SNAPSHOTS, Stored, base_of, owner_of
from orchestrator.retention import wished
from orchestrator.snapshots import Snapshot, Why


@dataclass(frozen=True, slots=True)
class ArchivePlan:
    """`orphans`: objects nobody needs, manifests before what they name. `lost`: ids of snapshots that are called
    archived and are not."""

    orphans: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


def to_send(records: Iterable[Snapshot], here: Collection[str]) -> tuple[Snapshot, ...]:
    """Those of this host to archive, in this order: of each execution its newest, then the others, the oldest first.
    Not those taken by themselves that a newer one has overtaken before their turn, nor those nobody has read yet."""
    groups: defaultdict[str, list[Snapshot]] = defaultdict(list)
    for record in records:
        if record.id in here and record.digest:
            groups[record.execution_id].append(record)
    first: list[Snapshot] = []
    then: list[Snapshot] = []
    for group in groups.values():
        group.sort(key=lambda each: (each.created_at, each.id))
        first += (one for one in group[-1:] if not one.archived)
        then += (one for one in group[:-1] if not one.archived and (wished(one) or one.why is not Why.PERIODIC))
    return tuple(sorted(first, key=lambda each: each.created_at) + sorted(then, key=lambda each: each.created_at))


def archive_plan(
    there: Sequence[Stored],
    snapshots: Iterable[Snapshot],
    executions: Collection[str],
    *,
    now: datetime,
    grace_s: float,
) -> ArchivePlan:
    """`snapshots` and `executions`: all there are, read after `there`. Needed are those with a record, and what they
    build on. What is young may be on its way."""
    old = now - timedelta(seconds=grace_s)
    bases: defaultdict[str, set[str]] = defaultdict(set)  # by snapshot, what its manifests build on
    layers: set[str] = set()
    for each in there:
        if (base := base_of(each.name)) is not None:
            bases[owner_of(each.name)].add(base)
        elif each.name.startswith(SNAPSHOTS):
            layers.add(owner_of(each.name))
    records = {snapshot.id: snapshot for snapshot in snapshots}
    needed = set(records)
    waiting = [snapshot_id for snapshot_id in records if snapshot_id in bases]
    while waiting:
        for base in bases.get(waiting.pop(), ()):
            if base and base not in needed:
                needed.add(base)
                waiting.append(base)
    orphans = [
        each.name
        for each in there
        if each.changed_at <= old
        and (
            (each.name.startswith(SNAPSHOTS) and owner_of(each.name) not in needed)
            or (each.name.startswith(HISTORIES) and owner_of(each.name) not in executions)
        )
    ]
    lost = tuple(
        one.id
        for one in records.values()
        if one.archived and one.created_at <= old and not (one.id in bases and one.id in layers)
    )
    return ArchivePlan(tuple(sorted(orphans, key=lambda name: not name.endswith(MANIFEST))), lost)
