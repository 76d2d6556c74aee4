"""Hosts and their workers: who was heard of, and what becomes of the executions of a lost one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from orchestrator.clock import from_ms
from orchestrator.errors import BadInput, NotFound
from orchestrator.execution import Execution, Outcome, OutcomeKind, Reason
from orchestrator.executions import COUNTERS, Host
from orchestrator.harnesses import harness_of
from orchestrator.lifecycle import ExecutionState
from orchestrator.retry import Again, Cause, GiveUp, decide
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.listing import Finder
from orchestrator.stores.redis.record import dumps, of_outcome, pairs

#: A worker not heard of for so long is not named any more. It beats every few seconds.
_WORKER_SILENT_MS = 60_000


class Hosts:
    """The hosts of one installation."""

    def __init__(self, server: Server, keys: Keys, finder: Finder) -> None:
        self._server = server
        self._keys = keys
        self._finder = finder

    async def heartbeat(self, host: str, worker: str, facts: Mapping[str, str], counted: Mapping[str, int]) -> None:
        """See the port."""
        more = [part for name, count in counted.items() if count for part in (name, count)]
        await self._server.run("heartbeat", self._keys.prefix, host, worker, dumps(dict(facts)), *more)

    async def counters(self) -> Mapping[str, int]:
        """See the port."""
        found = await self._server.ask("HMGET", self._keys.counters, *COUNTERS)
        return {name: int(count or 0) for name, count in zip(COUNTERS, found, strict=True)}

    async def all(self) -> Sequence[Host]:
        """See the port."""
        _, skew, now, hosts, workers = await self._server.run("hosts", self._keys.prefix)
        of_host: dict[str, list[str]] = {}
        for field, value in pairs(workers).items():
            kind, _, name = field.partition(":")
            if kind == "seen":
                seen, _, host = value.decode().partition(" ")
                if int(seen) >= now - _WORKER_SILENT_MS:
                    of_host.setdefault(host, []).append(name)
        found = []
        for host, value in sorted(pairs(hosts).items()):
            told = json.loads(value)
            seen_ms = int(told["seen"])
            found.append(
                Host(
                    host,
                    from_ms(seen_ms + skew),
                    tuple(sorted(of_host.get(host, ()))),
                    # cjson cannot tell an empty object from an empty list
                    dict(told["facts"] or {}),
                    silent_s=(now - seen_ms) / 1000,
                )
            )
        return found

    async def evict(self, host: str) -> Sequence[str]:
        """See the port."""
        evicted = []
        for member in await self._server.ask("ZRANGE", self._keys.due(host), 0, -1):
            execution_id = member.decode()
            while True:
                try:
                    execution = await self._finder.get(execution_id)
                except NotFound:
                    break
                answer = await self._server.run(
                    *("evict", self._keys.prefix, execution_id, host, execution.epoch),
                    *_what_next(execution, host, archived=False),
                    *_what_next(execution, host, archived=True),
                )
                if answer[0] == "changed":  # claimed meanwhile: decide again
                    continue
                if answer[0] == "ok":
                    evicted.append(execution_id)
                break
        return evicted


def _what_next(execution: Execution, host: str, *, archived: bool) -> tuple[str, int]:
    """The outcome as JSON, "" = another attempt, and in how many ms. The files are on the lost host: what is left is a
    snapshot in the archive, if there is one."""
    outcome, after_s = _decide(execution, host, archived)
    return "" if outcome is None else of_outcome(outcome), round(after_s * 1000)


def _decide(execution: Execution, host: str, archived: bool) -> tuple[Outcome | None, float]:
    if execution.state is ExecutionState.STOPPING and execution.wants.cancel:
        return Outcome(OutcomeKind.CANCELLED, Reason.CANCELLED, execution.wants.cancel.reason), 0.0
    try:
        resumes = harness_of(execution.spec).resumes
    except BadInput:
        resumes = False
    decision = decide(
        Cause.HOST_LOST,
        failures=execution.failures,
        policy=execution.spec.retry,
        ran=execution.started_at is not None,
        resumes=resumes,
        files_intact=archived,
        detail=f"host {host} was lost",
    )
    match decision:
        case GiveUp(outcome):
            return outcome, 0.0
        case Again(after_s):
            if execution.state is not ExecutionState.STOPPING:
                return None, after_s
            return Outcome(OutcomeKind.LOST, Reason.HOST_LOST, f"host {host} was lost while it was ending"), 0.0
