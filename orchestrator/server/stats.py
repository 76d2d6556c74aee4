"""What ended how, since when, by which group. Knows no store."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query

from orchestrator.errors import BadInput, NotFound
from orchestrator.server.parts import Parts, Reader, ThePart
from orchestrator.tokens import Scope
from orchestrator.wire.bounds import LABEL_KEY
from orchestrator.wire.operate import HostAnswer, OutcomeGroup, Stats, StoreAnswer, TenantDisk

router = APIRouter(prefix="/v1/stats", tags=["operate"])

_AGO: Final = re.compile(r"(\d{1,9})([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@router.get("", response_model=Stats, summary="Outcomes")
async def stats(
    parts: ThePart,
    caller: Reader,
    since: Annotated[str, Query(max_length=64, description="RFC 3339, or how long ago: 90s, 30m, 24h, 7d")] = "24h",
    by: Annotated[str, Query(max_length=80, description="harness, tenant or label:<key>")] = "",
    disk: Annotated[bool, Query(description="measure workspaces and snapshots, too, by tenant")] = False,
) -> Stats:
    """Of the caller's tenant; with an `admin` token of all tenants, with states and hosts."""
    start = _since(since, parts.clock.now())
    _check_group(by)
    admin = caller.allows(Scope.ADMIN)
    tallies = await parts.executions.tally(start, by=by, tenant=None if admin else caller.tenant)
    counted = await parts.executions.count() if admin else {}
    hosts = await parts.executions.hosts() if admin else ()
    return Stats(
        states={state.value: count for state, count in counted.items()},
        since=start,
        groups=[OutcomeGroup.of(tally) for tally in tallies],
        hosts=[HostAnswer.of(host) for host in hosts],
        store=StoreAnswer.of(await parts.store.facts()) if admin and parts.store else None,
        disk=await _disk(parts, None if admin else caller.tenant) if disk else [],
    )


async def _disk(parts: Parts, tenant: str | None) -> list[TenantDisk]:
    """Of one tenant, or all. Looks at every record, and on plain directories at every file: only where asked for."""
    workspaces: Counter[str] = Counter()
    used: Counter[str] = Counter()
    snapshots: Counter[str] = Counter()
    snapshot_bytes: Counter[str] = Counter()
    async for execution in parts.executions.everything():
        whose = execution.spec.tenant
        here = execution.host == parts.settings.host and execution.sandbox_id
        if parts.store is None or not here or tenant not in (None, whose):
            continue
        try:
            use = await parts.store.disk(here)
        except NotFound:
            continue  # it sleeps, and only its snapshot is left; or it was swept
        workspaces[whose] += 1
        used[whose] += use.used_bytes
    async for snapshot in parts.snapshots.everything():
        if tenant in (None, snapshot.tenant):
            snapshots[snapshot.tenant] += 1
            snapshot_bytes[snapshot.tenant] += snapshot.size_bytes
    return [
        TenantDisk(
            tenant=whose,
            workspaces=workspaces[whose],
            used_bytes=used[whose],
            snapshots=snapshots[whose],
            snapshot_bytes=snapshot_bytes[whose],
        )
        for whose in sorted({*workspaces, *snapshots})
    ]


def _since(said: str, now: datetime) -> datetime:
    if ago := _AGO.fullmatch(said):
        seconds = int(ago[1]) * _UNIT_S[ago[2]]
        return now - timedelta(seconds=min(seconds, now.timestamp()))
    try:
        # A "+" that was not escaped in a URL arrives as a space.
        moment = datetime.fromisoformat(said.strip().replace(" ", "+") if "T" in said else said)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadInput(
            f"{said[:64]!r} is not a moment",
            field="since",
            limit="RFC 3339, or a number with s, m, h or d",
            remedy="for example 24h",
        ) from None


def _check_group(by: str) -> None:
    kind, colon, key = by.partition(":")
    if by in {"", "harness", "tenant"} or (kind == "label" and colon and LABEL_KEY.fullmatch(key)):
        return
    raise BadInput(
        f"{by[:80]!r} is not a way to group", field="by", limit="harness, tenant or label:<key>", remedy="by=harness"
    )
