"""May this server be used, and is what lies on it ours to read? Knows the schema's number, no key's content.

`prepare` runs once before anything else and refuses; `ready` tells a person what is wrong and never raises.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from orchestrator.errors import BadInput, CarrelError
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.keys import Keys

logger = logging.getLogger(__name__)

#: The shape of keys and records that this release writes.
SCHEMA: Final = 1
OLDEST_VERSION: Final = (6, 2)
#: From which schema to the next: each is safe to repeat, because a crash may come before the number is written.
Migrations = Mapping[int, Callable[[Server, Keys], Awaitable[None]]]
MIGRATIONS: Final[Migrations] = {}


async def prepare(server: Server, keys: Keys, migrations: Migrations = MIGRATIONS, *, to_restore: bool = False) -> None:
    """Refuse a server Carrel cannot keep its promises on, write the schema's number, migrate what is older.

    Raises BadInput(field="redis_url") for Cluster mode, a replica, a version before 6.2, a newer schema, or what a
    restore holds or left half done (unless `to_restore`); StoreUnavailable.
    """
    info = await _info(server)
    if why := _unfit(info):
        raise BadInput(why[0], field="redis_url", limit="one primary, version 6.2 or newer", remedy=why[1])
    found, restoring = await server.ask("HMGET", keys.meta, "schema", "restoring")
    if restoring is not None and not to_restore:
        raise BadInput(
            _restoring(restoring),
            field="redis_url",
            limit="a store that is whole",
            remedy="run the same `carrel restore` again: it goes on where it was",
        )
    if found is None:
        await server.ask("HSETNX", keys.meta, "schema", SCHEMA)  # safe to repeat: whoever comes first writes it
        found = await server.ask("HGET", keys.meta, "schema")
    schema = int(found)
    if schema > SCHEMA:
        raise BadInput(
            f"the store was written by a newer Carrel: its schema is {schema}",
            field="redis_url",
            limit=f"schema {SCHEMA} or older",
            remedy="start the newer release, or use another installation name",
        )
    while schema < SCHEMA:
        logger.info("migrating the store", extra={"from_schema": schema, "to_schema": schema + 1})
        await migrations[schema](server, keys)
        schema += 1
        await server.ask("HSET", keys.meta, "schema", schema)


async def ready(server: Server, keys: Keys) -> Mapping[str, str]:
    """What is wrong ("" = nothing): `store` (does it answer, is it fit), `durability` (promise P1: AOF `always` and
    noeviction), `schema`."""
    try:
        info = await _info(server)
        if why := _unfit(info):
            unknown = "not known: the server is not fit"
            return {"store": f"{why[0]}: {why[1]}", "durability": unknown, "schema": unknown}
        found, restoring = await server.ask("HMGET", keys.meta, "schema", "restoring")
    except CarrelError as failure:
        unknown = "not known: the store does not answer"
        return {"store": failure.message, "durability": unknown, "schema": unknown}
    schema = ""
    if found is None:
        schema = "there is none: this installation was never prepared, or the store was emptied"
    elif int(found) != SCHEMA:
        schema = f"it is {int(found)}, this release needs {SCHEMA}"
    elif restoring is not None:
        schema = _restoring(restoring)
    return {
        "store": "",
        "durability": await _durability(server, info),
        "schema": schema,
    }


def _restoring(backup: bytes) -> str:
    return f"backup {backup.decode()[:12]} is being restored into it, or was half"


def _unfit(info: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong with this server, and what to do."""
    # Valkey tells the version of Redis it is compatible with under this name, which is what counts here.
    told = info.get("redis_version", "0")
    version = tuple(int(part) for part in told.split(".")[:2] if part.isdigit())
    if version < OLDEST_VERSION:
        return f"the server's version is {told}", "use Redis 6.2 or newer, or Valkey"
    if info.get("cluster_enabled") == "1" or info.get("redis_mode") == "cluster":
        return (
            "the server runs in Cluster mode",
            "name a server that runs without it (a replica is fine)",
        )
    if info.get("role") not in (None, "master"):
        return "the server is a replica", "name the primary"
    return None


async def _durability(server: Server, info: Mapping[str, str]) -> str:
    if info.get("aof_enabled") != "1":
        return "appendonly is off: what was acknowledged can be lost. Set appendonly yes and appendfsync always"
    if info.get("aof_last_write_status", "ok") != "ok":
        return "the last write to the append-only file failed: see the server's log and its disk"
    wrong = []
    for name, wanted in (("appendfsync", "always"), ("maxmemory-policy", "noeviction")):
        try:
            told = await server.ask("CONFIG", "GET", name)
        except CarrelError:
            return f"{name} cannot be read (CONFIG is not allowed here): make sure that it is {wanted}"
        found = told[1].decode() if told else "not known"
        if found != wanted:
            wrong.append(f"{name} is {found} and should be {wanted}")
    return "; ".join(wrong)


async def _info(server: Server) -> dict[str, str]:
    text = (await server.ask("INFO")).decode()
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
