"""Records of snapshots on Redis: the port `orchestrator.snapshots.Snapshots`. Knows no filesystem.

A new one is written by `append.lua`, with the event that says so; what changes one later is a script of its own here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from orchestrator.errors import BadInput, Conflict, NameTaken, NotFound
from orchestrator.snapshots import Snapshot, SnapshotPage
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.record import dumps, pairs, to_spec
from orchestrator.stores.redis.snapshot_record import check_name, measures, to_snapshot

_PAGE: Final = 200
_SHORTEST_PREFIX: Final = len("snp_") + 4


class RedisSnapshots:
    """See the port."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server = server
        self._keys = keys

    async def get(self, snapshot_id: str, *, tenant: str) -> Snapshot:
        if snapshot_id.startswith("snp_"):
            found = await self._by_id(snapshot_id, tenant)
        else:
            found = await self._by_name(snapshot_id, tenant)
        if found is None:
            raise unknown_snapshot(snapshot_id)
        return found

    async def list(self, *, tenant: str, execution_id: str = "", cursor: str = "", limit: int = 100) -> SnapshotPage:
        index = (
            self._keys.snapshots_of(execution_id) if execution_id else self._keys.index("snapshots", "tenant", tenant)
        )
        last = _to_place(cursor, numbered=bool(execution_id)) if cursor else ""
        found: list[tuple[str, Snapshot]] = []
        while True:
            if execution_id:
                numbered = await self._server.ask(
                    *("ZREVRANGEBYSCORE", index, f"({last}" if last else "+inf", "-inf", "WITHSCORES"),
                    *("LIMIT", 0, _PAGE),
                )
                places = [(numbered[i].decode(), numbered[i + 1].decode()) for i in range(0, len(numbered), 2)]
            else:
                ids = await self._server.ask(
                    "ZREVRANGEBYLEX", index, f"({last}" if last else "+", "-", "LIMIT", 0, _PAGE
                )
                places = [(id.decode(), id.decode()) for id in ids]
            place_of = dict(places)
            for snapshot in await self._fetch([id for id, _ in places]):
                if snapshot.tenant != tenant:
                    continue
                if len(found) == limit:
                    return SnapshotPage(tuple(snapshot for _, snapshot in found), _to_cursor(found[-1][0]))
                found.append((place_of[snapshot.id], snapshot))
            if len(places) < _PAGE:
                return SnapshotPage(tuple(snapshot for _, snapshot in found))
            last = places[-1][1]

    async def tree(self, execution_id: str) -> Sequence[Snapshot]:
        family = await self.family(execution_id)
        held = await self._server.ask_all(*(("ZRANGE", self._keys.snapshots_of(id), 0, -1) for id in family))
        found: list[Snapshot] = []
        ids = [id.decode() for some in held for id in some]
        for i in range(0, len(ids), _PAGE):
            found += await self._fetch(ids[i : i + _PAGE])
        return sorted(found, key=lambda snapshot: (snapshot.created_at, snapshot.id))

    async def family(self, execution_id: str) -> Sequence[str]:
        found = {execution_id}
        above = execution_id
        while above := (await self._server.ask("HGET", self._keys.record(above), "descends") or b"").decode():
            found.add(above)
        generation = [execution_id]
        while generation:
            below = await self._server.ask_all(*(("ZRANGE", self._keys.forks(id), 0, -1) for id in generation))
            generation = [id.decode() for ids in below for id in ids if id.decode() not in found]
            found.update(generation)
        specs = await self._server.ask_all(*(("HGET", self._keys.record(id), "spec") for id in found))
        if not any(specs):
            named = await self._server.ask("EXISTS", self._keys.snapshots_of(execution_id))
            return (execution_id,) if named else ()
        # What a fork was made from is named in its spec, also when that was removed since.
        found.update(origin.execution_id for spec in specs if spec and (origin := to_spec(spec).origin))
        return sorted(found)  # ids begin with their time

    async def label(self, snapshot_id: str, *, name: str | None, labels: Mapping[str, str] | None) -> Snapshot:
        if name is not None:
            check_name(name)
        answer = await self._server.run(
            *("snapshot_label", self._keys.prefix, snapshot_id),
            *("" if name is None else f"={name}", "" if labels is None else dumps(dict(labels))),
        )
        match answer:
            case ["ok", list(flat)]:
                return to_snapshot(snapshot_id, pairs(flat))
            case ["taken", bytes(other)]:
                raise name_taken(name or "", other.decode())
            case _:
                raise unknown_snapshot(snapshot_id)

    async def measured(self, snapshot_id: str, *, digest: str, size_bytes: int, files: int) -> None:
        await self._tell(snapshot_id, measures(digest, size_bytes, files))

    async def archived(self, snapshot_id: str, archived: bool = True) -> None:
        answer = await self._server.run("snapshot_archived", self._keys.prefix, snapshot_id, int(archived))
        if answer[0] != "ok":
            raise unknown_snapshot(snapshot_id)

    async def some(self, ids: Sequence[str]) -> Sequence[Snapshot]:
        return await self._fetch(ids)

    async def remove(self, snapshot_id: str, *, why: str = "asked") -> None:
        answer = await self._server.run("snapshot_remove", self._keys.prefix, snapshot_id, why)
        if answer[0] == "needed":
            execution_id = answer[1].decode()
            raise Conflict(
                f"{execution_id} has not ended and would go on from {snapshot_id}",
                execution=execution_id,
                remedy="take a newer snapshot of it first, or wait for its end",
            )

    async def on_host(self, host: str) -> Sequence[Snapshot]:
        index = self._keys.index("snapshots", "host", host)
        return [snapshot async for snapshot in self._walk(index)]

    def everything(self) -> AsyncIterator[Snapshot]:
        return self._walk(self._keys.index("snapshots", "all"))

    async def _by_id(self, ref: str, tenant: str) -> Snapshot | None:
        for snapshot in await self._fetch([ref]):
            return snapshot if snapshot.tenant == tenant else None
        if len(ref) < _SHORTEST_PREFIX:
            return None
        index, within = self._keys.index("snapshots", "tenant", tenant), (f"[{ref}", b"[" + ref.encode() + b"\xff")
        found = await self._server.ask("ZRANGEBYLEX", index, *within, "LIMIT", 0, 2)
        if len(found) > 1:
            count = await self._server.ask("ZLEXCOUNT", index, *within)
            raise _ambiguous(f"{count} snapshots begin with {ref}", count)
        return next(iter(await self._fetch([id.decode() for id in found])), None)

    async def _by_name(self, name: str, tenant: str) -> Snapshot | None:
        check_name(name)
        index = self._keys.index("snapshots", "names", tenant)
        found = await self._server.ask("ZRANGEBYLEX", index, f"[{name}\t", f"({name}\n", "LIMIT", 0, 100)
        if len(found) > 1:
            raise _ambiguous(f"{len(found)} snapshots have the name {name!r}", len(found))
        return next(iter(await self._fetch([member.decode().rpartition("\t")[2] for member in found])), None)

    async def _walk(self, index: str) -> AsyncIterator[Snapshot]:
        start = "-"
        while True:
            page = await self._server.ask("ZRANGEBYLEX", index, start, "+", "LIMIT", 0, _PAGE)
            for snapshot in await self._fetch([id.decode() for id in page]):
                yield snapshot
            if len(page) < _PAGE:
                return
            start = f"({page[-1].decode()}"

    async def _fetch(self, ids: Sequence[str]) -> Sequence[Snapshot]:
        """Those that are there, in the order asked for."""
        if not ids:
            return []
        answers = await self._server.ask_all(*(("HGETALL", self._keys.snapshot(id)) for id in ids))
        return [to_snapshot(id, pairs(flat)) for id, flat in zip(ids, answers, strict=True) if flat]

    async def _tell(self, snapshot_id: str, fields: Mapping[str, str]) -> None:
        flat = [item for pair in fields.items() for item in pair]
        answer = await self._server.run("snapshot_tell", self._keys.prefix, snapshot_id, *flat)
        if answer[0] != "ok":
            raise unknown_snapshot(snapshot_id)


def name_taken(name: str, other: str) -> NameTaken:
    """The error of a name that another snapshot has."""
    return NameTaken(f"{other} has the name {name!r}", name=name, id=other)


def unknown_snapshot(ref: str) -> NotFound:
    """The error of an id, or name, that no snapshot of the tenant has."""
    return NotFound(f"no snapshot {ref!r}", kind="snapshot", id=ref)


def _ambiguous(why: str, matches: int) -> BadInput:
    return BadInput(
        why, field="snapshot", limit="what only one has", remedy="give its id, or more of it", matches=matches
    )


def _to_cursor(place: str) -> str:
    return base64.urlsafe_b64encode(f"below:{place}".encode()).decode().rstrip("=")


def _to_place(cursor: str, *, numbered: bool) -> str:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (ValueError, binascii.Error):
        text = ""
    place = text.removeprefix("below:")
    if place == text or not place or numbered != place.isdecimal():
        raise BadInput("this cursor was not given out by this list", field="cursor", remedy="begin without one")
    return place
