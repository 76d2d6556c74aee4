"""Alive, ready, measured: what a supervisor, a load balancer and Prometheus ask. Knows no store."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from fastapi import APIRouter, Response

from orchestrator.errors import StoreUnavailable
from orchestrator.server import metrics
from orchestrator.server.parts import Admin, Parts, Reader, ThePart
from orchestrator.wire.operate import Health, Promises, Readiness

router = APIRouter(tags=["operate"])

_HOST_SEEN: Final = timedelta(seconds=60)
#: Outcomes are looked up one by one, so a scrape looks at the newest only: its cost goes with the rate, not the store.
_WINDOW: Final = timedelta(hours=1)


@router.get("/healthz", response_model=Health, summary="Liveness")
async def healthz(parts: ThePart) -> Health:
    """This process answers. The only page that needs no token."""
    return Health(version=parts.settings.version)


@router.get("/readyz", response_model=Readiness, summary="Readiness", responses={503: {"model": Readiness}})
async def readyz(parts: ThePart, _caller: Reader, response: Response) -> Readiness:
    """200 when requests can be served, else 503; `reasons` also says what is promised less than usual."""
    wrong = await parts.executions.ready()
    reasons = [f"{part}: {why}" for part, why in wrong.items() if why]
    ready = not (wrong.get("store") or wrong.get("schema"))
    if parts.stopping.is_set():
        ready = False
        reasons.append("this process is stopping")
    if ready and not await _workers(parts):
        reasons.append("workers: none has been heard of for a minute; what is submitted waits")
    reasons += [f"disk: {why}" for why in await parts.admission.reasons()]
    if not ready:
        response.status_code = 503
    return Readiness(ready=ready, reasons=reasons, promises=Promises(durability=not wrong.get("durability")))


async def _workers(parts: Parts) -> bool:
    try:
        hosts = await parts.executions.hosts()
    except StoreUnavailable:
        return True  # unknown is not none; the store's own reason says enough
    return any(host.workers and host.seen_at > parts.clock.now() - _HOST_SEEN for host in hosts)


@router.get("/metrics", response_class=Response, summary="Prometheus")
async def prometheus(parts: ThePart, _caller: Admin) -> Response:
    """Of this process, and of the installation as the store has it. Of all tenants, so it needs `admin`."""
    try:
        counted = await parts.executions.count()
        tallies = await parts.executions.tally(parts.clock.now() - _WINDOW)
        hosts = [host for host in await parts.executions.hosts() if host.seen_at > parts.clock.now() - _HOST_SEEN]
        counters = await parts.executions.counters()
    except StoreUnavailable:
        counted, tallies, hosts, counters = {}, [], [], {}  # this process's own figures still count, now most of all
    parts.metrics.encoded_events.inc(parts.encodings.encoded - parts.metrics.encoded_before)
    parts.metrics.encoded_before = parts.encodings.encoded
    return Response(parts.metrics.scrape(counted, tallies, hosts, counters), media_type=metrics.CONTENT_TYPE)
