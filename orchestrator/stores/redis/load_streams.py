"""Generic streams out of a backup, and how anything goes into a Redis stream twice without harm. Knows no execution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from orchestrator.dump import Line
from orchestrator.stores.redis.connection import Argument, Server
from orchestrator.stores.redis.dump import raw
from orchestrator.stores.redis.keys import Keys

#: Above any epoch that claims since the backup may have reached, and any number of a stream made since.
FAR: Final = 1 << 20
_AT_ONCE: Final = 100
_BYTES_AT_ONCE: Final = 1 << 20


class LoadedStreams:
    """Of one backup, in the order they were read: forks before what they share. `generations`: how many there were."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server = server
        self._keys = keys
        self.generations = 0
        self._moved: dict[int, int] = {}  # under which number now
        self._refs: dict[int, int] = {}
        self._forks: list[tuple[int, Mapping[str, str]]] = []
        self._bytes = 0

    async def add(self, line: Line) -> None:
        """One that can go on gets a new number, so that an offset behind its end is no place in what comes now."""
        before = int(line["generation"])
        if line["of"] == "stream entries":
            key = f"{self._keys.streams}{self._moved.get(before, before)}:entries"
            await put_entries(self._server, self._keys, key, line["entries"])
            return
        fields = dict(line["fields"])
        ended = fields.get("closed") == "1" or fields.get("deleted") == "1"
        now = self._moved[before] = before if ended else self._number(before)
        source = int(fields.get("source") or 0)
        if source:
            self._refs[source] = self._refs.get(source, 0) + 1
            self._forks.append((now, fields))
        fields["refs"] = str(self._refs.get(before, 0))
        held = f"{self._keys.streams}{now}"
        commands: list[tuple[Argument, ...]] = [
            ("UNLINK", held, f"{held}:entries", f"{held}:producers"),
            ("HSET", held, *flat(fields)),
            ("SET", raw(f"{self._keys.streams}at:{fields['name']}"), now),
        ]
        if line["producers"]:
            commands.append(("HSET", f"{held}:producers", *flat(line["producers"])))
        if fields.get("expires") and fields.get("deleted") != "1":
            commands.append(("ZADD", f"{self._keys.streams}expiry", fields["expires"], now))
        self._bytes += int(fields.get("bytes") or 0)
        await self._server.ask_all(*commands)

    def _number(self, before: int) -> int:
        return before + self.generations + FAR

    async def finish(self) -> None:
        """Forks were read before what they share: their chains are told the numbers that have come since. One whose
        source is not there was itself removed while the backup was taken."""
        for now, fields in self._forks:
            held, source = f"{self._keys.streams}{now}", int(fields["source"])
            if source not in self._moved:
                name = raw(f"{self._keys.streams}at:{fields['name']}")
                await self._server.ask("UNLINK", held, f"{held}:entries", f"{held}:producers", name)
                continue
            links = (link.split(":") for link in fields["inherited"].split())
            chain = " ".join(f"{self._moved.get(int(g), int(g))}:{n}" for g, n in links)
            await self._server.ask("HSET", held, "inherited", chain, "source", self._moved[source])
        if self.generations:
            await self._server.ask_all(
                ("SET", f"{self._keys.streams}generations", self._number(self.generations)),
                ("SET", f"{self._keys.streams}bytes", self._bytes),
            )


async def put_entries(server: Server, keys: Keys, key: str, entries: Sequence[Sequence[str]]) -> None:
    """Entries of one Redis stream, each with its id first; those that are there are passed over."""
    for some in _by_size(entries):
        parts = [raw(part) for entry in some for part in entry]
        await server.run("restore_entries", keys.prefix, key, "stream", len(some[0]), *parts)


def _by_size(entries: Sequence[Sequence[str]]) -> Iterator[Sequence[Sequence[str]]]:
    """In calls that do not hold the server for long."""
    some: list[Sequence[str]] = []
    size = 0
    for entry in entries:
        some.append(entry)
        size += sum(map(len, entry))
        if len(some) == _AT_ONCE or size >= _BYTES_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def flat(fields: Mapping[str, str]) -> list[bytes]:
    return [raw(item) for pair in fields.items() for item in pair]
