"""Indexes made what the records say. The records are the truth; everything found here can be built from them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

from orchestrator.executions import Repair
from orchestrator.lifecycle import ExecutionState
from orchestrator.stores.redis.connection import Argument, Server
from orchestrator.stores.redis.keys import Keys

#: Executions in one script: the server serves nobody else meanwhile.
_AT_ONCE: Final = 32


class Repairer:
    """Safe at any time, also while others write: every script looks at the record again."""

    def __init__(self, server: Server, keys: Keys, most_active: Argument) -> None:
        self._server = server
        self._keys = keys
        self._most_active = most_active

    async def repair(self) -> Sequence[Repair]:
        """See the port."""
        done: list[Repair] = []
        prefix, suffix = self._keys.records.split("*")
        async for page in self._scan(self._keys.records):
            ids = [name.removeprefix(prefix).removesuffix(suffix) for name in page]
            for some in _parts(ids):
                _, found = await self._server.run("repair", self._keys.prefix, *some)
                words = [word.decode() for word in found]
                done += [Repair(*words[i : i + 3]) for i in range(0, len(words), 3)]
        done += await self._prune("due", self._keys.due())
        for state in ExecutionState:
            done += await self._prune("state", self._keys.index("state", state), state)
        for index in ("all", "finished"):
            done += await self._prune("other", self._keys.index(index))
        for kind, pattern in (
            ("due", self._keys.due("*")),
            ("other", self._keys.index("tenant", "*")),
            ("other", self._keys.index("label", "*")),
            ("other", self._keys.index("active", "*")),
            ("parked", self._keys.parked("*")),
        ):
            async for page in self._scan(pattern):
                for key in page:
                    done += await self._prune(kind, key)
        done += await self._snapshots()
        done += await self._unpark()
        for kind, key in (("name", self._keys.names), ("sandbox", self._keys.index("sandboxes"))):
            done += await self._prune_hash(kind, key)
        return done

    async def _snapshots(self) -> list[Repair]:
        """The lists of snapshots, from their records. (Who begins from which is in the records of executions.)"""
        done: list[Repair] = []
        prefix = self._keys.snapshot("")
        async for page in self._scan(self._keys.snapshot("snp_*")):
            for some in _parts([name.removeprefix(prefix) for name in page]):
                _, found = await self._server.run("repair_snapshots", self._keys.prefix, *some)
                words = [word.decode() for word in found]
                done += [Repair("list", *words[i : i + 2]) for i in range(0, len(words), 2)]
        done += await self._prune_snapshots(self._keys.index("snapshots", "all"), "", "")
        for what, field in (("tenant", "tenant"), ("of", "execution"), ("host", "host"), ("names", "names")):
            index = self._keys.index("snapshots", what, "")
            async for page in self._scan(f"{index}*"):
                for key in page:
                    done += await self._prune_snapshots(key, field, key.removeprefix(index))
        return done

    async def _prune_snapshots(self, key: str, field: str, value: str) -> list[Repair]:
        members = await self._server.ask("ZRANGE", key, 0, -1)
        what = key.removeprefix(self._keys.prefix)
        done = []
        for at in range(0, len(members), _AT_ONCE):
            some = members[at : at + _AT_ONCE]
            _, gone = await self._server.run("prune_snapshots", self._keys.prefix, key, field, value, *some)
            done += [Repair("stale", id.decode(), f"taken from {what}") for id in gone]
        return done

    async def _prune(self, kind: str, key: str, state: str = "") -> list[Repair]:
        """What is in an index and does not belong there, taken out."""
        ids = [member.decode() for member in await self._server.ask("ZRANGE", key, 0, -1)]
        what = key.removeprefix(self._keys.prefix)
        done = []
        for some in _parts(ids):
            _, gone = await self._server.run("prune", self._keys.prefix, kind, key, state, *some)
            done += [Repair("stale", member.decode(), f"taken from {what}") for member in gone]
        return done

    async def _prune_hash(self, kind: str, key: str) -> list[Repair]:
        """Names and sandboxes that point to a record that is not there."""
        _, gone = await self._server.run("prune_hash", self._keys.prefix, key)
        return [Repair("stale", execution.decode(), kind) for execution in gone]

    async def _unpark(self) -> list[Repair]:
        done = []
        async for page in self._scan(self._keys.parked("*")):
            for key in page:
                tenant = key.removeprefix(self._keys.parked(""))
                while True:
                    _, released = await self._server.run("unpark", self._keys.prefix, tenant, self._most_active)
                    done += [Repair("quota", id.decode(), "released") for id in released]
                    if not released:
                        break
        return done

    async def _scan(self, pattern: str) -> AsyncIterator[list[str]]:
        """Keys that match. Our own names hold no glob characters but `*`."""
        cursor = "0"
        while True:
            told, page = await self._server.ask("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            if page:
                yield [name.decode() for name in page]
            cursor = told.decode()
            if cursor == "0":
                return


def _parts(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[i : i + _AT_ONCE] for i in range(0, len(ids), _AT_ONCE))
