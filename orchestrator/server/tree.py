"""Where an execution comes from and what came of it, as nodes and edges. Knows no store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from fastapi import APIRouter

from orchestrator.errors import NotFound
from orchestrator.execution import Execution
from orchestrator.server.parts import Parts, Reader, ThePart
from orchestrator.snapshots import Snapshot
from orchestrator.wire.snapshot import Edge, ExecutionNode, SnapshotAnswer, TreeAnswer

router = APIRouter(prefix="/v1/executions/{id}", tags=["snapshots"])

_AT_ONCE: Final = 32


@router.get("/tree", response_model=TreeAnswer, summary="Lineage")
async def tree(id: str, parts: ThePart, caller: Reader) -> TreeAnswer:
    """From where it began, all that came of that: executions and snapshots, oldest first, and edges. A fork hangs on
    its snapshot, or, where that was removed, on the execution it was taken of."""
    execution = await parts.find(id, caller)
    began = await root_of(parts, execution)
    taken = [one for one in await parts.snapshots.tree(began) if one.tenant == caller.tenant]
    known = await _known(parts, await parts.snapshots.family(began), caller.tenant)
    known[execution.id] = execution
    for snapshot in taken:
        known.setdefault(snapshot.execution_id, None)
    edges = _edges(known, taken)
    below = {edge.child for edge in edges}
    return TreeAnswer(
        root=next((id for id in known if id not in below), execution.id),
        executions=[ExecutionNode.of(id, found) for id, found in known.items()],
        snapshots=[SnapshotAnswer.of(one) for one in taken],
        edges=edges,
    )


async def root_of(parts: Parts, execution: Execution) -> str:
    """The execution that all of its tree descends from and that is still there: nothing that descends from another is
    older than it."""
    for id in await parts.snapshots.family(execution.id):
        if id >= execution.id or await _get(parts, id) is not None:
            return id
    return execution.id


async def _known(parts: Parts, ids: Sequence[str], tenant: str) -> dict[str, Execution | None]:
    """Each by its id, in this order; None for one that was removed. Another tenant's are not in it."""
    found: dict[str, Execution | None] = {}
    for at in range(0, len(ids), _AT_ONCE):
        some = ids[at : at + _AT_ONCE]
        for id, execution in zip(some, await asyncio.gather(*(_get(parts, id) for id in some)), strict=True):
            if execution is None or execution.spec.tenant == tenant:
                found[id] = execution
    return found


async def _get(parts: Parts, id: str) -> Execution | None:
    try:
        return await parts.executions.get(id)
    except NotFound:
        return None


def _edges(known: Mapping[str, Execution | None], taken: Sequence[Snapshot]) -> list[Edge]:
    there = {snapshot.id for snapshot in taken}
    edges = [Edge(kind="taken", parent=one.execution_id, child=one.id) for one in taken]
    for id, execution in known.items():
        if execution is not None and (origin := execution.spec.origin) is not None:
            parent = origin.snapshot_id if origin.snapshot_id in there else origin.execution_id
            edges.append(Edge(kind="rewound" if origin.rewind else "forked", parent=parent, child=id))
    return edges
