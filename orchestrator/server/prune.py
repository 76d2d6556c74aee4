"""Prune: what is over goes when somebody says so, not only by its time. Knows no directory."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter

from orchestrator.errors import CarrelError, Forbidden, Unavailable
from orchestrator.execution import Execution
from orchestrator.executions import Filter
from orchestrator.pruning import Going, Kind, prune_plan
from orchestrator.removing import Freed
from orchestrator.server.parts import Parts, ThePart, Writer
from orchestrator.snapshots import Snapshot
from orchestrator.tokens import Scope
from orchestrator.wire.prune import KeptItem, PruneAnswer, PruneBody, PrunedItem

router = APIRouter(prefix="/v1/prune", tags=["operate"])

_PAGE: Final = 500
_AT_ONCE_S: Final = 5.0  # an answer comes about then, whatever is left: nobody waits without a word


@router.post("", response_model=PruneAnswer, summary="Prune")
async def prune(body: PruneBody, parts: ThePart, caller: Writer) -> PruneAnswer:
    """Of the caller's tenant; with `all_tenants`, of all, which needs `admin`. Never touches what has not ended, nor a
    snapshot somebody asked for, named, or would begin from. Safe to repeat, and to break off: what a crash leaves is
    swept. Artifacts of a workspace that goes alone stay."""
    if body.all_tenants and not caller.allows(Scope.ADMIN):
        raise Forbidden("only `admin` may prune all tenants", scope=Scope.ADMIN.value, remedy="leave all_tenants out")
    tenant = None if body.all_tenants else caller.tenant
    snapshots = await _snapshots(parts, tenant)
    executions = await _executions(parts, tenant)
    plan = prune_plan(executions, snapshots, body.wish(), now=parts.clock.now())
    pruned: list[PrunedItem] = []
    kept: list[KeptItem] = []
    last = ""
    until = parts.clock.monotonic() + _AT_ONCE_S
    for going in plan:
        if going.place <= body.after:
            continue
        done = len(pruned) + len(kept)
        if done == body.limit or (done and parts.clock.monotonic() >= until):
            return _answer(body, pruned, kept, last)
        last = going.place
        try:
            if going.stays:
                kept.append(KeptItem(kind=going.kind, id=going.id, why=going.stays))
            elif (freed := await _remove(parts, going, dry=body.dry_run)) is not None:
                pruned.append(_item(going, freed))
        except Unavailable:
            raise
        except CarrelError as refused:
            kept.append(KeptItem(kind=going.kind, id=going.id, why=refused.message))
        except OSError as failure:
            kept.append(KeptItem(kind=going.kind, id=going.id, why=failure.strerror or "its files cannot be removed"))
    return _answer(body, pruned, kept, "")


def _answer(body: PruneBody, pruned: list[PrunedItem], kept: list[KeptItem], next_: str) -> PruneAnswer:
    freed_bytes = sum(item.size_bytes for item in pruned)
    return PruneAnswer(dry_run=body.dry_run, pruned=pruned, kept=kept, freed_bytes=freed_bytes, next=next_)


def _item(going: Going, freed: Freed) -> PrunedItem:
    one = going.snapshot or going.execution
    assert one is not None  # see Going
    named, tenant = (one.name, one.tenant) if isinstance(one, Snapshot) else (one.spec.name, one.spec.tenant)
    return PrunedItem(
        kind=going.kind,
        id=going.id,
        name=named,
        tenant=tenant,
        size_bytes=freed.size_bytes,
        elsewhere=sorted(freed.elsewhere),
    )


async def _remove(parts: Parts, going: Going, *, dry: bool) -> Freed | None:
    """None: it was gone already."""
    if going.snapshot is not None:
        return await parts.removing.snapshot(going.snapshot, why="prune", of=going.execution, dry=dry)
    assert going.execution is not None  # see Going
    if going.kind is Kind.EXECUTIONS:
        return await parts.removing.execution(going.execution, dry=dry)
    here = going.execution.host == parts.settings.host
    if here and parts.store is not None and not await parts.store.holds(going.execution.sandbox_id or ""):
        return None
    return await parts.removing.workspace(going.execution, dry=dry)


async def _executions(parts: Parts, tenant: str | None) -> list[Execution]:
    if tenant is None:
        return [one async for one in parts.executions.everything()]
    found: list[Execution] = []
    cursor = ""
    while True:
        page = await parts.executions.list(Filter(), tenant=tenant, cursor=cursor, limit=_PAGE)
        found += page.executions
        cursor = page.next
        if not cursor:
            return found


async def _snapshots(parts: Parts, tenant: str | None) -> list[Snapshot]:
    if tenant is None:
        return [one async for one in parts.snapshots.everything()]
    found: list[Snapshot] = []
    cursor = ""
    while True:
        page = await parts.snapshots.list(tenant=tenant, cursor=cursor, limit=_PAGE)
        found += page.snapshots
        cursor = page.next
        if not cursor:
            return found
