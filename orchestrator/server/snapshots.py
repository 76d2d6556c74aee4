"""Snapshots: taken, listed, named, removed. Knows no worker and no directory: who takes one, and where its files lie,
is not its business."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Final

from fastapi import APIRouter, Body, Header, Query, Request, Response

from orchestrator.errors import Conflict, NotFound
from orchestrator.execution import Execution
from orchestrator.lifecycle import ExecutionState
from orchestrator.server import cuts, file_answers
from orchestrator.server.executions import check_key
from orchestrator.server.parts import Parts, Reader, ThePart, Writer
from orchestrator.server.waiting import preferred_wait_s
from orchestrator.snapshots import Snapshot, Why
from orchestrator.wire import bounds
from orchestrator.wire.snapshot import SnapshotAnswer, SnapshotBody, SnapshotChange, SnapshotListing, SnapshotReceipt

router = APIRouter(prefix="/v1/snapshots", tags=["snapshots"])
of_executions = APIRouter(prefix="/v1/executions/{id}/snapshots", tags=["snapshots"])

_MOST_LISTED: Final = 500
_S = ExecutionState

Cursor = Annotated[str, Query(max_length=512)]
Limit = Annotated[int, Query(ge=1, le=_MOST_LISTED)]
Taken = Annotated[SnapshotBody, Body(default_factory=lambda: SnapshotBody())]


@of_executions.post("", status_code=202, response_model=SnapshotReceipt, summary="Snapshot")
async def take(
    id: str,
    request: Request,
    response: Response,
    parts: ThePart,
    caller: Writer,
    body: Taken,
    idempotency_key: Annotated[str, Header(max_length=bounds.IDEMPOTENCY_KEY_CHARS)] = "",
) -> SnapshotReceipt:
    """Files, harness state and history as one cut, while it works on. Receipt: snapshot.created, or snapshot.failed;
    `Prefer: wait=N` holds the answer for it: 201 when it is there. What sleeps or has ended does not change any more:
    its newest is answered, 200, with the name and the labels given."""
    check_key(idempotency_key)
    execution = await parts.find(id, caller)
    if execution.state in {_S.HIBERNATED, _S.FINISHED}:
        found = await _named(parts, await cuts.newest(parts, execution), body)
        response.status_code = 200
        return SnapshotReceipt(id=found.id, snapshot=SnapshotAnswer.of(found))
    await parts.admission.admit(execution.host)
    snapshot_id = await cuts.ask(
        parts, execution, why=Why.ASKED, name=body.name, labels=body.labels, key=idempotency_key
    )
    wait_s = preferred_wait_s(request)
    if not wait_s:
        return SnapshotReceipt(id=snapshot_id)
    request.scope["carrel.held"] = True
    done = await cuts.taken(parts, execution, snapshot_id, wait_s=wait_s)
    response.status_code = 202 if done is None else 201
    return SnapshotReceipt(id=snapshot_id, snapshot=SnapshotAnswer.of(done) if done else None)


async def _named(parts: Parts, found: Snapshot, body: SnapshotBody) -> Snapshot:
    """With the name and labels asked for. A name it has is not taken from it: somebody gave it."""
    if body.name and found.name not in ("", body.name):
        raise Conflict(
            f"its newest snapshot, {found.id}, has the name {found.name!r}",
            remedy=f"rename it: PATCH /v1/snapshots/{found.id}",
        )
    labels = {**found.labels, **body.labels}
    if body.name in ("", found.name) and labels == dict(found.labels):
        return found
    return await parts.snapshots.label(found.id, name=body.name or None, labels=labels)


@of_executions.get("", response_model=SnapshotListing, summary="Snapshots of one")
async def of_one(id: str, parts: ThePart, caller: Reader, limit: Limit = 100, cursor: Cursor = "") -> SnapshotListing:
    """Newest first."""
    return await _list(parts, await parts.find(id, caller), caller.tenant, cursor, limit)


@router.get("", response_model=SnapshotListing, summary="Snapshots")
async def all_of_them(
    parts: ThePart,
    caller: Reader,
    execution: Annotated[str, Query(max_length=128, description="only of this one")] = "",
    limit: Limit = 100,
    cursor: Cursor = "",
) -> SnapshotListing:
    """Of the caller's tenant, newest first."""
    only = await parts.find(execution, caller) if execution else None
    return await _list(parts, only, caller.tenant, cursor, limit)


async def _list(parts: Parts, only: Execution | None, tenant: str, cursor: str, limit: int) -> SnapshotListing:
    page = await parts.snapshots.list(tenant=tenant, execution_id=only.id if only else "", cursor=cursor, limit=limit)
    return SnapshotListing(snapshots=[SnapshotAnswer.of(one) for one in page.snapshots], next=page.next)


@router.get("/{sid}", response_model=SnapshotAnswer, summary="Snapshot's record")
async def record(sid: str, parts: ThePart, caller: Reader) -> SnapshotAnswer:
    """By its id, a unique prefix of it, or its name."""
    return SnapshotAnswer.of(await parts.find_snapshot(sid, caller))


@router.get("/{sid}/export", response_class=Response, summary="Export")
async def export(sid: str, parts: ThePart, caller: Reader) -> Response:
    """All it holds, `workspace/` and `state/`, as a tar.zst that any tar reads; streamed. A submit's `archive` begins
    with it, here or elsewhere."""
    found = await parts.find_snapshot(sid, caller)
    await parts.reach.snapshot_files(found)  # which says what to do where it is not here
    assert parts.store is not None
    pieces = await parts.in_thread(partial(parts.store.pack, found.id))
    return file_answers.packed(parts, pieces, f"{found.id}.tar.zst", "tar.zst")


@router.patch("/{sid}", response_model=SnapshotAnswer, summary="Name and labels")
async def change(sid: str, body: SnapshotChange, parts: ThePart, caller: Writer) -> SnapshotAnswer:
    """Other words for it. One with a name stays until somebody removes it."""
    found = await parts.find_snapshot(sid, caller)
    return SnapshotAnswer.of(await parts.snapshots.label(found.id, name=body.name, labels=body.labels))


@router.delete("/{sid}", status_code=204, response_class=Response, summary="Remove a snapshot")
async def remove(sid: str, parts: ThePart, caller: Writer) -> Response:
    """What was begun from it stays as it is. 409 while an execution that has not ended would begin from it. Files on
    another host go when its worker next sweeps."""
    found = await parts.find_snapshot(sid, caller)
    try:
        of = await parts.executions.get(found.execution_id)
    except NotFound:
        of = None  # removed; others were still to begin from this one
    await parts.removing.snapshot(found, why="asked", of=of)
    return Response(status_code=204)
