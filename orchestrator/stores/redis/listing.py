"""Finding executions: by reference, by filter, all, and how they ended. Only reads; knows no queue.

The indexes are sorted sets with equal scores, so that ids, which begin with their time, come in their own order:
newest first is the order of the ids.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Final

from orchestrator.clock import to_ms
from orchestrator.errors import BadInput, NotFound
from orchestrator.execution import Execution, Spend
from orchestrator.executions import Filter, Listing, Tally
from orchestrator.lifecycle import WITH_SANDBOX, ExecutionState
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.record import SPEND, pairs, skew_of, to_execution

_PAGE: Final = 100
#: A page of a rare kind may come back short after so many records, with the cursor to go on: no request scans a store.
_MOST_SCANNED: Final = 5000
_SHORTEST_PREFIX: Final = len("exe_") + 4


class Finder:
    """Reads of records by everything but "who is due"."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server = server
        self._keys = keys

    async def fetch(self, ids: Sequence[str]) -> list[Execution]:
        """The records that are there, in the order asked for."""
        if not ids:
            return []
        clock, *answers = await self._server.ask_all(
            ("HMGET", self._keys.meta, "last", "now"), *(("HGETALL", self._keys.record(id)) for id in ids)
        )
        skew = skew_of(clock)
        return [to_execution(id, pairs(flat), skew) for id, flat in zip(ids, answers, strict=True) if flat]

    async def get(self, execution_id: str) -> Execution:
        found = await self.fetch([execution_id])
        if not found:
            raise NotFound(f"no execution {execution_id}", kind="execution", id=execution_id)
        return found[0]

    async def resolve(self, ref: str, *, tenant: str) -> Execution:
        """See the port."""
        index = self._keys.index("tenant", tenant)
        if ref.startswith("exe_"):
            if await self._server.ask("ZSCORE", index, ref) is not None:
                return await self.get(ref)
            if len(ref) >= _SHORTEST_PREFIX:
                within = (f"[{ref}", b"[" + ref.encode() + b"\xff")
                count = await self._server.ask("ZLEXCOUNT", index, *within)
                if count > 1:
                    raise BadInput(
                        f"{count} executions begin with {ref}",
                        field="id",
                        limit="a prefix that only one has",
                        remedy="give more characters",
                        matches=count,
                    )
                if count == 1:
                    (only,) = await self._server.ask("ZRANGEBYLEX", index, *within)
                    return await self.get(only.decode())
        named = await self._server.ask("HGET", self._keys.names, f"{tenant}\t{ref}")
        found = await self.fetch([named.decode()]) if named else []
        if not found:
            raise NotFound(f"no execution {ref!r}", kind="execution", id=ref)
        return found[0]

    async def page(self, filter: Filter, *, tenant: str, cursor: str, limit: int) -> Listing:
        """See `Executions.list`."""
        last = _to_id(cursor) if cursor else ""
        found: list[Execution] = []
        scanned = 0
        sources = await self._sources(filter, tenant)
        while scanned < _MOST_SCANNED:
            ids = await self._before(sources, last)
            scanned += len(ids)
            for execution in await self.fetch(ids):
                if not _matches(execution, filter, tenant):
                    continue
                if len(found) == limit:
                    return Listing(tuple(found), _to_cursor(found[-1].id))
                found.append(execution)
            if len(ids) < _PAGE:
                return Listing(tuple(found), "")
            last = ids[-1]
        return Listing(tuple(found), _to_cursor(last))

    async def ended_before(self, moment: datetime, limit: int) -> Sequence[str]:
        """See the port."""
        index = self._keys.index("finished")
        ids = await self._server.ask("ZRANGEBYSCORE", index, "-inf", f"({to_ms(moment)}", "LIMIT", 0, limit)
        return [id.decode() for id in ids]

    async def everything(self) -> AsyncIterator[Execution]:
        """See the port."""
        start = "-"
        while True:
            page = await self._server.ask("ZRANGEBYLEX", self._keys.index("all"), start, "+", "LIMIT", 0, _PAGE)
            for execution in await self.fetch([id.decode() for id in page]):
                yield execution
            if len(page) < _PAGE:
                return
            start = f"({page[-1].decode()}"

    async def owner_of_sandbox(self, sandbox_id: str) -> Execution | None:
        """See the port."""
        owner = await self._server.ask("HGET", self._keys.index("sandboxes"), sandbox_id)
        found = await self.fetch([owner.decode()]) if owner else []
        return next((e for e in found if e.sandbox_id == sandbox_id and e.state in WITH_SANDBOX), None)

    async def count(self) -> Mapping[ExecutionState, int]:
        """See the port."""
        states = list(ExecutionState)
        counts = await self._server.ask_all(*(("ZCARD", self._keys.index("state", state)) for state in states))
        return dict(zip(states, counts, strict=True))

    async def tally(self, since: datetime, *, by: str, tenant: str | None) -> Sequence[Tally]:
        """See the port."""
        if by not in ("", "harness", "tenant") and not by.startswith("label:"):
            raise BadInput(f"cannot group by {by!r}", field="by", limit="harness, tenant or label:<key>")
        ids = await self._server.ask("ZRANGEBYSCORE", self._keys.index("finished"), to_ms(since), "+inf")
        groups: dict[str, _Sum] = {}
        for i in range(0, len(ids), 500):
            some = [id.decode() for id in ids[i : i + 500]]
            answers = await self._server.ask_all(
                *(("HMGET", self._keys.record(id), *_Sum.FIELDS) for id in some),
                *(("HGET", self._keys.intents(id), "unsettled") for id in some),
            )
            for told, doubts in zip(answers[: len(some)], answers[len(some) :], strict=True):
                outcome, of_tenant, harness, labels, attempt, started, finished, *spent = told
                if outcome is None or (tenant is not None and of_tenant.decode() != tenant):
                    continue
                if by.startswith("label:"):
                    group = json.loads(labels or b"{}").get(by.removeprefix("label:"), "")
                else:
                    group = {"": b"", "harness": harness, "tenant": of_tenant}[by].decode()
                groups.setdefault(group, _Sum()).add(outcome, attempt, started, finished, doubts, spent)
        return [groups[name].tally(name) for name in sorted(groups)]

    async def _sources(self, filter: Filter, tenant: str) -> list[str]:
        """The indexes to look through: of those that hold all that can match, the one with the fewest."""
        choices = [[self._keys.index("tenant", tenant)]]
        choices += [[self._keys.index("label", tenant, f"{name}={value}")] for name, value in filter.labels.items()]
        if filter.outcomes and not filter.states:
            choices.append([self._keys.index("state", ExecutionState.FINISHED)])
        if filter.states:
            choices.append([self._keys.index("state", state) for state in filter.states])
        sizes = await self._server.ask_all(*(("ZCARD", key) for keys in choices for key in keys))
        size = iter(sizes)
        return min(((sum(next(size) for _ in keys), keys) for keys in choices), key=lambda found: found[0])[1]

    async def _before(self, sources: Sequence[str], last: str) -> list[str]:
        """The next ids after `last` in the order of the list."""
        start = f"({last}" if last else "+"
        pages = await self._server.ask_all(*(("ZREVRANGEBYLEX", key, start, "-", "LIMIT", 0, _PAGE) for key in sources))
        merged = heapq.merge(*pages, reverse=True)
        # One that moves between two states meanwhile may be in both.
        return [id.decode() for id in dict.fromkeys(merged)][:_PAGE]


class _Sum:
    """The outcomes of one group, added up."""

    FIELDS: Final = ("outcome", "tenant", "harness", "labels", "attempt", "started", "finished", *SPEND)

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.resumed = 0
        self.wall_ms = 0
        self.in_doubt = 0
        self.spent = [0] * len(SPEND)

    def add(
        self,
        outcome: bytes,
        attempt: bytes | None,
        started: bytes | None,
        finished: bytes,
        doubts: bytes | None,
        spent: Sequence[bytes | None],
    ) -> None:
        told = json.loads(outcome)
        self.outcomes[told["kind"]] += 1
        self.reasons[told["reason"]] += 1
        self.resumed += int(attempt or 0) > 1
        self.in_doubt += int(doubts or 0)
        self.spent = [total + int(more or 0) for total, more in zip(self.spent, spent, strict=True)]
        if started:
            self.wall_ms += int(finished) - int(started)

    def tally(self, group: str) -> Tally:
        return Tally(
            group,
            self.outcomes.total(),
            dict(self.outcomes),
            dict(self.reasons),
            self.resumed,
            self.wall_ms / 1000,
            self.in_doubt,
            Spend(*self.spent),
        )


def _matches(execution: Execution, filter: Filter, tenant: str) -> bool:
    spec = execution.spec
    return (
        spec.tenant == tenant
        and (not filter.states or execution.state in filter.states)
        and (not filter.outcomes or (execution.outcome is not None and execution.outcome.kind in filter.outcomes))
        and all(spec.labels.get(name) == value for name, value in filter.labels.items())
        and (not filter.name or spec.name == filter.name)
        and (not filter.harness or spec.harness == filter.harness)
    )


def _to_cursor(execution_id: str) -> str:
    return base64.urlsafe_b64encode(f"after:{execution_id}".encode()).decode().rstrip("=")


def _to_id(cursor: str) -> str:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (ValueError, binascii.Error):
        text = ""
    if not text.startswith("after:"):
        raise BadInput("this cursor was not given out by this list", field="cursor", remedy="begin without one")
    return text.removeprefix("after:")
