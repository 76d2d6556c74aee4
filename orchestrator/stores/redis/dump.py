"""Everything one installation has on Redis, as lines: the port `orchestrator.dump.Dump`. Only reads; knows no file.

By our own keys and page by page, so any server will do and none is asked for its file. What only grows (histories,
inboxes, entries of streams) is read up to where one script said it stood; what changes was in that script's answer.
The journal of intents is read later and set back to that moment, as a fork's is (lua/piece_intents.lua). Recorded
answers of model calls are not in it: a harness that resumes asks again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

from orchestrator.dump import EXECUTION, LINE_BYTES, SNAPSHOT, Line
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.record import dumps
from orchestrator.stores.redis.schema import SCHEMA

_PAGE: Final = 200
_FIRST_COUNT: Final = 16
_MOST_COUNT: Final = 2000


class RedisDump:
    """See the port."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server = server
        self._keys = keys

    async def lines(self) -> AsyncIterator[Line]:
        generations = int(await self._server.ask("GET", self._keys.streams + "generations") or 0)
        yield {"of": "store", "schema": SCHEMA, "generations": generations}
        async for page in scanned(self._server, "HSCAN", self._keys.tokens):
            for digest, about in _by_two(page):
                yield {"of": "token", "digest": text(digest), "about": text(about)}
        # Before the executions: what an acknowledged key made is then among them.
        async for line in self._keys_used():
            yield line
        async for line in self._executions():
            yield line
        async for line in self._orphans():
            yield line
        async for line in self._streams():
            yield line

    # -- executions ---------------------------------------------------------------------------------------------------

    async def _executions(self) -> AsyncIterator[Line]:
        """Newest first: what was made meanwhile is nobody's predecessor here."""
        index, last = self._keys.index("all"), "+"
        while True:
            page = await self._server.ask("ZREVRANGEBYLEX", index, last, "-", "LIMIT", 0, _PAGE)
            for name in page:
                async for line in self._execution(name.decode()):
                    yield line
            if len(page) < _PAGE:
                return
            last = f"({page[-1].decode()}"

    async def _execution(self, execution_id: str) -> AsyncIterator[Line]:
        head = await self._server.run("backup_head", self._keys.prefix, execution_id)
        if head[0] != "ok":
            return  # removed meanwhile
        _, skew_ms, flat, intents, snapshots, calls = head
        record = table(flat)
        tail, inbox_tail = int(record.get("tail", 0)), int(record.get("inbox_tail", 0))
        yield {"of": EXECUTION, "id": execution_id, "skew_ms": skew_ms, "record": record, "calls": table(calls)}
        end = f"{tail}-1" if record["state"] == "FINISHED" else f"{tail}-0"
        async for entries in self._entries(self._keys.history(execution_id), end):
            yield {"of": "history", "id": execution_id, "entries": entries}
        if record["state"] == "FINISHED" and "history_archived" not in record:
            (gone,) = await self._server.ask("HMGET", self._keys.record(execution_id), "history_archived")
            if gone is not None:  # it went while it was read
                yield {"of": "history archived", "id": execution_id}
        async for entries in self._entries(self._keys.inbox(execution_id), f"{inbox_tail}-0"):
            yield {"of": "inbox", "id": execution_id, "entries": entries}
        if inbox_tail:
            async for page in scanned(self._server, "HSCAN", self._keys.inbox_ids(execution_id)):
                ids = {text(id): text(of) for id, of in _by_two(page) if int(of.partition(b" ")[0]) <= inbox_tail}
                yield {"of": "inbox ids", "id": execution_id, "ids": ids}
        for at in range(0, intents, _PAGE):
            # What is settled after the end changes the journal only.
            upto = None if record["state"] == "FINISHED" else tail
            yield await self._intents(execution_id, at, min(at + _PAGE, intents), upto)
        for some in _parts(snapshots):
            async for line in self._snapshots([name.decode() for name in some]):
                yield line

    async def _intents(self, execution_id: str, at: int, upto: int, tail: int | None) -> Line:
        order, journal = self._keys.intents_order(execution_id), self._keys.intents(execution_id)
        names = await self._server.ask("LRANGE", order, at, upto - 1)
        fields = [prefix + name for name in names for prefix in (b"i:", b"r:")]
        told = await self._server.ask("HMGET", journal, *fields) if fields else []
        entries = []
        for name, intent, result in zip(names, told[::2], told[1::2], strict=True):
            if intent is not None:  # else it was removed with all of it, a moment ago
                entries.append([text(name), *_as_it_stood(text(intent), text(result or b""), tail)])
        return {"of": "intents", "id": execution_id, "at": at, "entries": entries}

    async def _snapshots(self, ids: Sequence[str]) -> AsyncIterator[Line]:
        told = await self._server.ask_all(*(("HGETALL", self._keys.snapshot(id)) for id in ids)) if ids else []
        for id, flat in zip(ids, told, strict=True):
            if flat:
                yield {"of": SNAPSHOT, "id": id, "fields": table(flat)}

    async def _orphans(self) -> AsyncIterator[Line]:
        """Snapshots that outlived their execution."""
        start = "-"
        while True:
            page = await self._server.ask(
                "ZRANGEBYLEX", self._keys.index("snapshots", "all"), start, "+", "LIMIT", 0, _PAGE
            )
            async for line in self._snapshots([name.decode() for name in page]):
                if not await self._server.ask("EXISTS", self._keys.record(line["fields"].get("execution", ""))):
                    yield line
            if len(page) < _PAGE:
                return
            start = f"({page[-1].decode()}"

    # -- what belongs to no execution ---------------------------------------------------------------------------------

    async def _keys_used(self) -> AsyncIterator[Line]:
        prefix = self._keys.prefix + "idem:"
        async for page in scanned(self._server, "SCAN", "", "MATCH", prefix + "*"):
            told = await self._server.ask_all(*(ask for name in page for ask in (("HGETALL", name), ("PTTL", name))))
            for name, flat, left_ms in zip(page, told[::2], told[1::2], strict=True):
                if flat and left_ms > 0:
                    key = text(name).removeprefix(prefix)
                    yield {"of": "key", "key": key, "fields": table(flat), "left_ms": left_ms}

    async def _streams(self) -> AsyncIterator[Line]:
        """Youngest first: a fork is read before what it shares, which then reaches at least as far as it was forked."""
        prefix = self._keys.streams
        generations: set[int] = set()
        async for page in scanned(self._server, "SCAN", "", "MATCH", prefix + "[1-9]*"):
            generations.update(int(tail) for name in page if (tail := text(name).removeprefix(prefix)).isdecimal())
        for generation in sorted(generations, reverse=True):
            _, flat, producers = await self._server.run("backup_stream", self._keys.prefix, generation)
            if not flat:
                continue
            fields = table(flat)
            yield {"of": "stream", "generation": generation, "fields": fields, "producers": table(producers)}
            end = f"{fields['tail']}-{1 if fields.get('closed') == '1' else 0}"
            async for entries in self._entries(f"{prefix}{generation}:entries", end):
                yield {"of": "stream entries", "generation": generation, "entries": entries}

    async def _entries(self, key: str, end: str) -> AsyncIterator[list[list[str]]]:
        """A Redis stream up to `end`: [id, field, value, …] each."""
        start, count = "-", _FIRST_COUNT
        while True:
            rows = await self._server.ask("XRANGE", key, start, end, "COUNT", count)
            size = sum(len(part) for _, parts in rows for part in parts)
            if rows:
                yield [[text(id), *map(text, parts)] for id, parts in rows]
            if len(rows) < count:
                return
            start = f"({text(rows[-1][0])}"
            count = max(1, min(_MOST_COUNT, LINE_BYTES * count // max(size, 1)))


def _as_it_stood(intent: str, result: str, tail: int | None) -> tuple[str, str]:
    """What changed after that event had been begun by then, and not ended."""
    of = json.loads(intent)
    if tail is None or of.get("at", 0) <= tail:
        return intent, result
    return dumps({name: of[name] for name in of if name not in _ENDED} | {"state": "open", "at": tail}), ""


_ENDED: Final = frozenset({"ended", "by", "decision", "nonce"})


async def scanned(server: Server, verb: str, key: str, *how: str) -> AsyncIterator[list[bytes]]:
    """Pages of a SCAN, HSCAN or the like. What is there all the time comes at least once."""
    cursor = "0"
    while True:
        told, page = await server.ask(verb, *([key] if key else []), cursor, *how, "COUNT", 500)
        if page:
            yield page
        cursor = told.decode()
        if cursor == "0":
            return


def text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def raw(said: str) -> bytes:
    """The inverse of `text`."""
    return said.encode("utf-8", "surrogateescape")


def table(flat: Sequence[Any]) -> dict[str, str]:
    return {text(name): text(value) for name, value in _by_two(flat)}


def _by_two(flat: Sequence[Any]) -> Iterator[tuple[bytes, bytes]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _parts(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (names[i : i + _PAGE] for i in range(0, len(names), _PAGE))
