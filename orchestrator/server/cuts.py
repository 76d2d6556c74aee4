"""A snapshot asked for, and waiting until it is there. Knows no route and no store of files.

The id of a snapshot to be is made here, of the time and, where the caller gave a key, of that key: the same request
sent again finds the snapshot it asked for before, whether that was taken meanwhile or not.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Mapping
from typing import Final

from ulid import ULID

from orchestrator.errors import CarrelError, Conflict, NotFound, Unavailable
from orchestrator.events import SNAPSHOT_CREATED, SNAPSHOT_FAILED, Cursor, Event
from orchestrator.execution import Execution, SnapshotWant
from orchestrator.history import Page
from orchestrator.lifecycle import ExecutionState
from orchestrator.server.parts import Parts
from orchestrator.server.waiting import first_page
from orchestrator.snapshots import Snapshot, Why

_S = ExecutionState
#: With living processes: what it holds now is in no snapshot yet.
ALIVE: Final = frozenset({_S.STARTING, _S.RUNNING, _S.PAUSED})
#: On the way to a state in which its newest snapshot is all there is.
_SETTLING: Final = frozenset({_S.HIBERNATING, _S.STOPPING})
_RANDOM_BYTES: Final = 10
_RANDOM_CHARS: Final = 16
_LOOKED_AT: Final = 100


def new_snapshot_id(parts: Parts, key: str = "") -> str:
    """`snp_…`, in the order of time; its random part is made of `key` where there is one."""
    random = hashlib.sha256(key.encode()).digest()[:_RANDOM_BYTES] if key else secrets.token_bytes(_RANDOM_BYTES)
    now_ms = int(parts.clock.now().timestamp() * 1000)
    return f"snp_{ULID.from_bytes(now_ms.to_bytes(6, 'big') + random)}".lower()


async def ask(
    parts: Parts, execution: Execution, *, why: Why, name: str = "", labels: Mapping[str, str] | None = None, key: str
) -> str:
    """Wish for one of a living execution; its id. Raises Conflict where it does not live (any more)."""
    id = new_snapshot_id(parts, f"{execution.id}\n{why}\n{key}" if key else "")
    if key and (known := await _known(parts, execution, id[-_RANDOM_CHARS:])):
        return known
    await parts.executions.want(execution.id, SnapshotWant(id, why, name, dict(labels or {})))
    parts.metrics.snapshots.labels(why.value).inc()
    return id


async def _known(parts: Parts, execution: Execution, random: str) -> str:
    wanted = [want.id for want in execution.wants.snapshots]
    listed = await parts.snapshots.list(tenant=execution.spec.tenant, execution_id=execution.id, limit=_LOOKED_AT)
    taken = [snapshot.id for snapshot in listed.snapshots]
    return next((id for id in (*wanted, *taken) if id.endswith(random)), "")


async def taken(parts: Parts, execution: Execution, id: str, *, wait_s: float) -> Snapshot | None:
    """The snapshot once it is there; None when the time was over first. `execution` as it was before it was asked for.
    Raises Conflict where it failed, or the execution ended before it."""
    tenant = execution.spec.tenant
    try:
        return await parts.snapshots.get(id, tenant=tenant)
    except NotFound:
        pass
    start = Cursor(execution.generation, execution.tail)
    page = await first_page(
        parts, execution.id, start, wait_s=wait_s, enough=lambda page: page.closed or _receipt(page, id) is not None
    )
    if page is None:
        return None
    receipt = _receipt(page, id)
    if receipt is not None and receipt.type == SNAPSHOT_FAILED:
        raise Conflict(
            f"the snapshot failed: {receipt.data.get('error') or 'no reason was given'}",
            snapshot=id,
            remedy="the work goes on; ask again, or look at its events",
        )
    try:
        return await parts.snapshots.get(id, tenant=tenant)
    except NotFound:
        raise Conflict(
            f"{execution.id} ended before its snapshot was taken",
            state=_S.FINISHED.value,
            remedy="use its last snapshot, taken at its end",
        ) from None


def _receipt(page: Page, id: str) -> Event | None:
    kinds = (SNAPSHOT_CREATED, SNAPSHOT_FAILED)
    return next((event for event in page.events if event.type in kinds and event.data.get("id") == id), None)


async def newest(parts: Parts, execution: Execution) -> Snapshot:
    """Of one that sleeps, waits or has ended; of a fork that has not begun, the one it will begin from. Raises Conflict
    where there is none."""
    origin = execution.spec.origin
    id = execution.snapshot_id or (origin.snapshot_id if origin and not execution.attempt else "")
    try:
        if id:
            return await parts.snapshots.get(id, tenant=execution.spec.tenant)
    except NotFound:
        pass  # removed by somebody since
    raise Conflict(
        f"{execution.id} is {execution.state} and has no snapshot",
        state=execution.state.value,
        remedy="take one while it runs, or let it take one at its end (`snapshots: {at_end: true}`)",
    )


async def as_it_is(parts: Parts, execution: Execution, *, why: Why, key: str, wait_s: float) -> Snapshot:
    """A snapshot that has what it holds now: a new one of what lives, else its newest. Raises Conflict, Unavailable
    when it has not come after `wait_s`."""
    try:
        async with asyncio.timeout(wait_s):
            while True:
                try:
                    if execution.state in ALIVE:
                        id = await ask(parts, execution, why=why, key=key)
                        if found := await taken(parts, execution, id, wait_s=wait_s):
                            return found
                    elif execution.state not in _SETTLING:
                        return await newest(parts, execution)
                    else:
                        await moved(parts, execution, wait_s=wait_s)
                except Conflict as refused:
                    now = await parts.executions.get(execution.id)
                    if now.state is execution.state or now.state in ALIVE:
                        raise refused
                    execution = now  # it went to sleep, or ended, while we asked
                    continue
                execution = await parts.executions.get(execution.id)
    except TimeoutError:
        raise late(execution, f"has no snapshot after {wait_s:g} s") from None


async def moved(parts: Parts, execution: Execution, *, wait_s: float) -> bool:
    """Until its history has gone on from where this record stands; False when the time was over."""
    start = Cursor(execution.generation, execution.tail)
    page = await first_page(
        parts, execution.id, start, wait_s=wait_s, enough=lambda page: page.closed or bool(page.events)
    )
    return page is not None


def late(execution: Execution, what: str) -> CarrelError:
    """The error of what should have come by now."""
    return Unavailable(
        f"{execution.id} {what}",
        state=execution.state.value,
        remedy="see that a worker runs on its host, then try again",
        retry_after_s=5.0,
    )
