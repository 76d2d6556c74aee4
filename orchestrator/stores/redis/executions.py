"""Records, queue and leases on Redis: the port `orchestrator.executions.Executions`. Knows no history's content.

Everything that changes something is one script (lua/); what only reads is here, or in `listing`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from orchestrator.errors import BadInput, Conflict, Gone, KeyReused, NameTaken, TooMany
from orchestrator.execution import (
    BudgetWant,
    CancelWant,
    EgressWant,
    Execution,
    HibernateWant,
    InterruptWant,
    PauseWant,
    ResourcesWant,
    SnapshotWant,
    Spec,
)
from orchestrator.executions import Claim, Filter, Host, Listing, Nothing, Repair, Submitted, Tally, Want
from orchestrator.history import Lease
from orchestrator.lifecycle import ExecutionState
from orchestrator.stores.redis import schema
from orchestrator.stores.redis.connection import LineLost, Server
from orchestrator.stores.redis.history import refusal
from orchestrator.stores.redis.hosts import Hosts
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.listing import Finder
from orchestrator.stores.redis.record import dumps, of_budget, of_egress, of_spec, pairs, to_execution
from orchestrator.stores.redis.repair import Repairer
from orchestrator.stores.redis.snapshot_record import check_id, check_name
from orchestrator.stores.redis.snapshots import name_taken, unknown_snapshot

_SHORTEST_WAIT_S: Final = 0.05
#: A claim has to run that often: the store's clock never advances by more than this at once.
_LONGEST_WAIT_S: Final = 5.0


class RedisExecutions:
    """See the port.

    `max_running`: most executions of one tenant that are neither asleep nor waiting for a place; None = no limit. Those
    beyond it wait, at most `max_parked` of them (TooMany). `fenced` as in RedisHistory.
    """

    def __init__(
        self,
        server: Server,
        keys: Keys,
        *,
        max_running: int | None = None,
        max_parked: int | None = None,
        fenced: bool = True,
    ) -> None:
        self._server = server
        self._keys = keys
        self._max_running = "" if max_running is None else max_running
        self._max_parked = "" if max_parked is None else max_parked
        self._fenced = int(fenced)
        self._finder = Finder(server, keys)
        self._hosts = Hosts(server, keys, self._finder)
        self._repairer = Repairer(server, keys, self._max_running)
        self._unheard: set[str] = set()  # owners whose wait was cancelled: a token may have been lost with it
        self._host_of: dict[str, str] = {}  # owner → host, as told by its claims: whose bell to listen to

    async def submit(
        self, spec: Spec, *, execution_id: str, idempotency_key: str = "", body_digest: str = ""
    ) -> Submitted:
        fields = [item for pair in of_spec(spec).items() for item in pair]
        deadline_s, origin = spec.limits.deadline_s, spec.origin
        answer = await self._server.run(
            "submit",
            self._keys.prefix,
            execution_id,
            spec.tenant,
            spec.name,
            idempotency_key,
            body_digest,
            "" if deadline_s is None else round(deadline_s * 1000),
            self._max_running,
            self._max_parked,
            dumps({"name": spec.name, "harness": spec.harness, "labels": dict(spec.labels)}),
            dumps([f"{name}={value}" for name, value in spec.labels.items()]),
            *(("", "", "") if origin is None else (origin.execution_id, origin.snapshot_id, int(origin.rewind))),
            *fields,
        )
        match answer:
            case ["created" | "known" as word, int(skew), list(flat)]:
                got = pairs(flat)
                return Submitted(to_execution(got["id"].decode(), got, skew), word == "created")
            case ["reused", bytes(other)]:
                raise KeyReused(
                    f"idempotency key {idempotency_key!r} was used before, with another body",
                    key=idempotency_key,
                    id=other.decode(),
                )
            case ["removed", bytes(other)]:
                raise Gone(
                    f"{other.decode()}, made with this idempotency key, was removed",
                    id=other.decode(),
                    remedy="submit it with another idempotency key",
                )
            case ["taken", bytes(other)]:
                raise NameTaken(
                    f"{other.decode()} has the name {spec.name!r} and has not ended", name=spec.name, id=other.decode()
                )
            case ["unknown", bytes(snapshot)]:
                raise unknown_snapshot(snapshot.decode())
            case ["orphan"] if origin is not None:
                raise Gone(
                    f"{origin.execution_id} was removed: nobody knows any more which of its calls were done at"
                    f" {origin.snapshot_id}",
                    id=origin.execution_id,
                    remedy="submit a new one",
                )
            case ["living", bytes(state)] if origin is not None:
                raise Conflict(
                    f"{origin.execution_id} is {state.decode()}: only the name of what has ended can be taken over",
                    state=state.decode(),
                    id=origin.execution_id,
                    remedy="cancel it and wait for its end, or fork it under another name",
                )
            case ["full", int(limit)]:
                raise TooMany(f"{limit} executions wait for a place already", limit=limit, retry_after_s=5.0)
            case _:
                raise refusal(answer, execution_id)

    async def get(self, execution_id: str) -> Execution:
        return await self._finder.get(execution_id)

    async def resolve(self, ref: str, *, tenant: str) -> Execution:
        return await self._finder.resolve(ref, tenant=tenant)

    async def list(self, filter: Filter, *, tenant: str, cursor: str = "", limit: int = 50) -> Listing:
        return await self._finder.page(filter, tenant=tenant, cursor=cursor, limit=limit)

    async def want(self, execution_id: str, want: Want) -> Execution:
        kind, states, remedy = _sense(want)
        if isinstance(want, SnapshotWant):
            check_id(want.id)
            check_name(want.name)
        if not 0 < len(want.id) <= 128 or "\n" in want.id:
            raise BadInput("a wish's id is too short or too long", field="id", limit="1 to 128 characters, no newline")
        answer = await self._server.run(
            "want", self._keys.prefix, execution_id, kind, want.id, _wish(want), " ".join(states)
        )
        match answer:
            case ["ok", int(skew), list(flat)]:
                return to_execution(execution_id, pairs(flat), skew)
            case ["conflict", bytes(state), bytes(newest)]:
                raise Conflict(
                    f"{execution_id} is {state.decode()}: {kind} makes no sense there",
                    state=state.decode(),
                    **_remedy(want, ExecutionState(state.decode()), newest.decode(), remedy),
                )
            case ["taken", bytes(other)] if isinstance(want, SnapshotWant):
                raise name_taken(want.name, other.decode())
            case ["attempt", int(attempt)]:
                raise Conflict(
                    f"{execution_id} is in attempt {attempt}: the interrupt was meant for another",
                    remedy="interrupt the present attempt",
                    attempt=attempt,
                )
            case ["full", int(limit)]:
                raise TooMany(f"{limit} {kind}s are asked for already", limit=limit, retry_after_s=1.0)
            case _:
                raise refusal(answer, execution_id)

    async def remove(self, execution_id: str) -> None:
        answer = await self._server.run("remove", self._keys.prefix, execution_id)
        if answer[0] == "conflict":
            state = answer[1].decode()
            raise Conflict(
                f"{execution_id} is {state}: only what has ended can be removed",
                state=state,
                remedy="cancel it and wait for its end",
            )

    async def claim(self, owner: str, host: str, *, lease_s: float, adopt_only: bool = False) -> Claim | Nothing:
        _check_owner(owner)
        self._host_of[owner] = host
        answer = await self._server.run(
            *("claim", self._keys.prefix, owner, host, round(lease_s * 1000), secrets.token_hex(8)),
            int(adopt_only),
        )
        match answer:
            case ["claimed", int(skew), int(now), bytes(name), list(flat)]:
                got = pairs(flat)
                execution = to_execution(name.decode(), got, skew)
                deadline = int(got.get("deadline") or 0)
                lease = Lease(execution.id, execution.epoch, owner, lease_s)
                return Claim(lease, execution, (deadline - now) / 1000 if deadline else None)
            case ["nothing", int(remaining)]:
                longest = min(lease_s / 4, _LONGEST_WAIT_S)
                wait_s = longest if remaining < 0 else min(remaining / 1000, longest)
                return Nothing(max(wait_s, _SHORTEST_WAIT_S))
            case _:
                raise refusal(answer, "")

    async def renew(self, lease: Lease) -> None:
        answer = await self._server.run(
            "renew", self._keys.prefix, lease.execution_id, lease.epoch, round(lease.lease_s * 1000), self._fenced
        )
        _expect_ok(answer, lease.execution_id)

    async def release(self, lease: Lease) -> None:
        answer = await self._server.run("release", self._keys.prefix, lease.execution_id, lease.epoch, self._fenced)
        _expect_ok(answer, lease.execution_id)

    async def wait(self, owner: str, *, shared: bool, timeout_s: float) -> Sequence[str]:
        _check_owner(owner)
        own = self._keys.bell(owner)
        bells = [own]
        if shared:
            bells += [self._keys.host_bell(self._host_of[owner])] if owner in self._host_of else []
            bells.append(self._keys.bell())
        if owner in self._unheard:
            self._unheard.discard(owner)
            return ("*",)
        timeout_s = max(timeout_s, 0.001)  # 0 would be for ever
        try:
            rung = await self._server.block("BLPOP", *bells, f"{timeout_s:.3f}", block_s=timeout_s)
        except LineLost:
            # A token may have been taken and lost with the line. Asking for anything waits until the store is back.
            await self._server.ask("EXISTS", self._keys.meta)
            return ("*",)
        except asyncio.CancelledError:
            # The same may have happened here: whoever waits next is told to look.
            self._unheard.add(owner)
            raise
        if not rung or rung[0].decode() != own:
            return ()
        # What else has rung meanwhile, in one go. Were this lost with the process, its leases would lapse with it.
        more = await self._rest(own)
        return tuple(dict.fromkeys(token.decode() for token in (rung[1], *more)))

    async def owner_of_sandbox(self, sandbox_id: str) -> Execution | None:
        return await self._finder.owner_of_sandbox(sandbox_id)

    async def heartbeat(
        self, host: str, worker: str, facts: Mapping[str, str], *, counted: Mapping[str, int] | None = None
    ) -> None:
        await self._hosts.heartbeat(host, worker, facts, counted or {})

    async def counters(self) -> Mapping[str, int]:
        return await self._hosts.counters()

    async def hosts(self) -> Sequence[Host]:
        return await self._hosts.all()

    async def evict(self, host: str) -> Sequence[str]:
        return await self._hosts.evict(host)

    async def repair(self) -> Sequence[Repair]:
        return await self._repairer.repair()

    async def count(self) -> Mapping[ExecutionState, int]:
        return await self._finder.count()

    async def tally(self, since: datetime, *, by: str = "", tenant: str | None = None) -> Sequence[Tally]:
        return await self._finder.tally(since, by=by, tenant=tenant)

    async def ended_before(self, moment: datetime, *, limit: int = 1000) -> Sequence[str]:
        return await self._finder.ended_before(moment, limit)

    def everything(self) -> AsyncIterator[Execution]:
        return self._finder.everything()

    async def ready(self) -> Mapping[str, str]:
        return await schema.ready(self._server, self._keys)

    async def _rest(self, bell: str) -> Sequence[bytes]:
        try:
            return await self._server.block("LPOP", bell, 64, block_s=0.0) or ()
        except LineLost:
            return (b"*",)


_S = ExecutionState
_OVER: Final = "submit a new one"
_ALL_BUT_FINISHED: Final = tuple(state for state in ExecutionState if state is not _S.FINISHED)
_BEFORE_THE_END: Final = tuple(state for state in _ALL_BUT_FINISHED if state is not _S.STOPPING)


def _sense(want: Want) -> tuple[str, Sequence[ExecutionState], str]:
    """A wish's kind, the states in which it makes sense, and what to do in the others."""
    match want:
        case CancelWant():
            return "cancel", _ALL_BUT_FINISHED, _OVER
        case PauseWant(paused=True):
            return "pause", (_S.STARTING, _S.RUNNING, _S.PAUSED), "only what runs can be paused"
        case PauseWant():
            return "resume", _BEFORE_THE_END, _OVER
        case ResourcesWant():
            return "resources", _BEFORE_THE_END, _OVER
        case EgressWant():
            return "egress", _BEFORE_THE_END, _OVER
        case BudgetWant():
            return "budget", _BEFORE_THE_END, _OVER
        case SnapshotWant():
            return "snapshot", (_S.STARTING, _S.RUNNING, _S.PAUSED), "ask again when it runs"
        case HibernateWant():
            states = (_S.STARTING, _S.RUNNING, _S.PAUSED, _S.HIBERNATING, _S.HIBERNATED)
            return "hibernate", states, "only what runs can go to sleep"
        case InterruptWant():
            return (
                "interrupt",
                (_S.RUNNING, _S.PAUSED),
                "only what runs can be interrupted",
            )


def _remedy(want: Want, state: ExecutionState, newest: str, remedy: str) -> dict[str, str]:
    """What to do instead; of a snapshot of what sleeps or has ended: which one has its files as they are."""
    if not isinstance(want, SnapshotWant) or state is _S.QUEUED:
        return {"remedy": _OVER if state is _S.FINISHED else remedy}
    if state in (_S.HIBERNATING, _S.STOPPING):
        return {"remedy": "its last snapshot is being taken: use that", "snapshot": newest}
    return {"remedy": f"{newest} has its files as they are: use that" if newest else _OVER, "snapshot": newest}


def _wish(want: Want) -> str:
    """As JSON. What stands in the record at once is the record's own JSON, with the wish's id."""
    match want:
        case EgressWant():
            return of_egress(want.egress, id=want.id)
        case BudgetWant():
            return of_budget(want.budget, id=want.id)
        case _:
            return dumps({name: value for name, value in asdict(want).items() if value is not None})


def _check_owner(owner: str) -> None:
    if not owner or owner.startswith("host:"):
        raise BadInput(f"a worker cannot be named {owner!r}", field="worker", limit='not empty, not "host:…"')


def _expect_ok(answer: Sequence[Any], execution_id: str) -> None:
    if answer[0] != "ok":
        raise refusal(answer, execution_id)
