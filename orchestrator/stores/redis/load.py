"""What a RedisDump gave out, written back: the port `orchestrator.dump.Load`. Knows no file.

A record waits beside its place until all is there; then it takes it in one step, what was alive with a new generation
and a higher epoch. Whatever crashes: the same backup, loaded again, goes on. Indexes are built from the records.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import Final

from orchestrator.dump import EXECUTION, SNAPSHOT, Line, Loaded
from orchestrator.errors import BadInput, Conflict
from orchestrator.execution import Execution, Outcome, OutcomeKind, Reason
from orchestrator.harnesses import harness_of
from orchestrator.lifecycle import ExecutionState
from orchestrator.retry import Cause, GiveUp, decide
from orchestrator.stores.redis.connection import Argument, Server
from orchestrator.stores.redis.dump import raw, scanned
from orchestrator.stores.redis.intents import unsettled
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.load_streams import FAR, LoadedStreams, flat, put_entries
from orchestrator.stores.redis.record import of_outcome, pairs, to_execution
from orchestrator.stores.redis.repair import Repairer
from orchestrator.stores.redis.schema import SCHEMA

#: Workers, once they are started, first look at what runs here and should not. Then it is due.
_DUE_MS: Final = 5_000


class RedisLoad:
    """See the port."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server = server
        self._keys = keys
        self._backup = ""
        self._host_was = self._host = ""
        self._passed_over = ""  # the execution that took its place already: its lines are
        self._schema_known = False
        self._streams = LoadedStreams(server, keys)
        self._journal_bytes = self._unsettled = 0  # of the journal whose pages are being read

    async def begin(self, backup: str, *, host_was: str, host: str, quiet_s: float) -> None:
        self._backup, self._host_was, self._host = backup, host_was, host
        half = (await self._server.ask("HGET", self._keys.meta, "restoring") or b"").decode()
        if half and half != backup:
            raise Conflict(
                f"another backup ({half[:12]}) is half restored into this installation",
                state="restoring",
                remedy="restore that one again, to its end; or begin with an empty store",
            )
        await self._nobody_works(quiet_s)
        if not half:
            await self._empty()
            await self._server.ask("HSET", self._keys.meta, "restoring", backup)

    async def add(self, line: Line, *, files: Collection[str]) -> None:
        kind = line.get("of")
        if kind == "store":
            self._check_schema(line)
        elif kind == "token":
            await self._server.ask("HSET", self._keys.tokens, line["digest"], line["about"])
        elif kind == "key":
            await self._key(line)
        elif kind == EXECUTION:
            await self._execution(line)
        elif kind == SNAPSHOT:
            await self._snapshot(line, files)
        elif kind in ("stream", "stream entries"):
            await self._streams.add(line)
        elif kind in ("history", "history archived", "inbox", "inbox ids", "intents"):
            if line["id"] != self._passed_over:
                await self._part(line)
        else:
            raise BadInput(
                f"the backup has lines of a kind {kind!r}, which this release does not know",
                field="file",
                remedy="restore it with the release that took it, or a newer one",
            )

    async def finish(self, *, taken_at: datetime) -> Loaded:
        await self._streams.finish()
        repairer = Repairer(self._server, self._keys, "")
        await repairer.repair()  # what a record begins from is looked for in the lists of snapshots
        finished, outcomes = 0, dict[str, list[str]]()
        prefix, suffix = self._keys.restored("*").split("*")
        async for page in scanned(self._server, "SCAN", "", "MATCH", self._keys.restored("*")):
            ids = [name.decode().removeprefix(prefix).removesuffix(suffix) for name in page]
            told = await self._server.ask_all(*(("HGETALL", self._keys.restored(id)) for id in ids))
            over = []
            for id, got_flat in zip(ids, told, strict=True):
                if not got_flat:
                    continue  # a page may have one twice
                got = pairs(got_flat)
                if got["state"] == b"FINISHED":
                    over.append(id)
                else:
                    became = await self._revive(id, got, taken_at)
                    outcomes.setdefault(became, []).append(id)
            if over:
                await self._server.run("restore_finished", self._keys.prefix, self._backup, *over)
                finished += len(over)
        await repairer.repair()
        await self._server.ask("HDEL", self._keys.meta, "restoring")
        by = {name: tuple(sorted(outcomes.get(name, ()))) for name in ("waits", "resumes", "lost")}
        return Loaded(finished, by["waits"], by["resumes"], by["lost"])

    # -- before -------------------------------------------------------------------------------------------------------

    async def _nobody_works(self, quiet_s: float) -> None:
        """Whoever works here asks for work every few seconds, and that moves the store's clock."""
        seen = (await self._server.ask("EXISTS", self._keys.workers)) == 1
        if not seen:
            return
        before = await self._server.ask("HGET", self._keys.meta, "last")
        await asyncio.sleep(quiet_s)
        if before != await self._server.ask("HGET", self._keys.meta, "last"):
            raise Conflict(
                "a worker or an api works on this store",
                state="in use",
                remedy="stop every `carrel serve`, `carrel api` and `carrel worker` of this installation first",
            )

    async def _empty(self) -> None:
        """Tokens and hosts do not count: a server that was merely started has made some."""
        for index, what in ((self._keys.index("all"), "execution"), (self._keys.index("snapshots", "all"), "snapshot")):
            count, first = await self._server.ask_all(("ZCARD", index), ("ZRANGE", index, 0, 0))
            if count:
                raise _not_empty(f"{count} {what}s, {first[0].decode()} for one")
        async for page in scanned(self._server, "SCAN", "", "MATCH", self._keys.streams + "at:*"):
            raise _not_empty(f"streams, {page[0].decode().removeprefix(self._keys.streams + 'at:')!r} for one")

    def _check_schema(self, line: Line) -> None:
        if line["schema"] != SCHEMA:
            raise BadInput(
                f"the backup has the schema {line['schema']}, this release writes {SCHEMA}",
                field="file",
                limit=f"schema {SCHEMA}",
                remedy="restore it with the release that took it, then upgrade",
            )
        self._streams.generations = int(line["generations"])

    # -- lines --------------------------------------------------------------------------------------------------------

    async def _key(self, line: Line) -> None:
        key = raw(self._keys.prefix + "idem:" + line["key"])
        await self._server.ask_all(("HSET", key, *flat(line["fields"])), ("PEXPIRE", key, int(line["left_ms"])))

    async def _execution(self, line: Line) -> None:
        id, keys = line["id"], self._keys
        self._passed_over = ""
        (by,) = await self._server.ask("HMGET", keys.record(id), "restored_from")
        if by is not None and by.decode() == self._backup:
            self._passed_over = id
            return
        record = dict(line["record"])
        if record.get("host") == self._host_was:
            record["host"] = self._host
        parts = (keys.history(id), keys.inbox(id), keys.inbox_ids(id), keys.intents(id), keys.intents_order(id))
        calls: list[tuple[Argument, ...]] = []
        if line["calls"]:
            calls.append(("HSET", keys.calls(id), *flat(line["calls"])))
        await self._server.ask_all(
            ("UNLINK", keys.restored(id), keys.record(id), keys.calls(id), *parts),
            *calls,
            ("HSET", keys.restored(id), *flat(record), "backup_skew", line["skew_ms"]),
        )

    async def _part(self, line: Line) -> None:
        id, keys = line["id"], self._keys
        match line["of"]:
            case "history":
                await put_entries(self._server, self._keys, keys.history(id), line["entries"])
            case "history archived":
                await self._server.ask_all(
                    ("HSET", keys.restored(id), "history_archived", "1"), ("UNLINK", keys.history(id))
                )
            case "inbox":
                await put_entries(self._server, self._keys, keys.inbox(id), line["entries"])
            case "inbox ids":
                if line["ids"]:
                    await self._server.ask("HSET", keys.inbox_ids(id), *flat(line["ids"]))
            case _:
                await self._intents(id, line)

    async def _intents(self, id: str, line: Line) -> None:
        journal, entries = self._keys.intents(id), line["entries"]
        if not entries:
            return
        fields: list[str | bytes] = []
        for name, intent, result in entries:
            fields += [raw(f"i:{name}"), raw(intent)]
            fields += [raw(f"r:{name}"), raw(result)] if result else []
        size = sum(len(raw(intent)) + len(raw(result)) for _, intent, result in entries)
        names = [raw(name) for name, _, _ in entries]
        order = self._keys.intents_order(id)
        unknown = sum(unsettled(raw(intent)) for _, intent, _ in entries)
        if not line["at"]:
            self._journal_bytes = self._unsettled = 0
        self._journal_bytes += size
        self._unsettled += unknown
        of_all: tuple[Argument, ...] = ("bytes", self._journal_bytes, "unsettled", self._unsettled)
        await self._server.ask("HSET", journal, *fields, *of_all)
        await self._server.run("restore_entries", self._keys.prefix, order, "list", 1, line["at"], *names)

    async def _snapshot(self, line: Line, files: Collection[str]) -> None:
        fields = dict(line["fields"])
        if fields.get("host") == self._host_was:
            fields["host"] = self._host
            if line["id"] not in files and fields.get("archived") != "1":
                return
        key = self._keys.snapshot(line["id"])
        await self._server.ask_all(("UNLINK", key), ("HSET", key, *flat(fields)))

    # -- at the end ---------------------------------------------------------------------------------------------------

    async def _revive(self, id: str, got: dict[str, bytes], taken_at: datetime) -> str:
        skew_ms = int(got["backup_skew"])
        execution = to_execution(id, got, skew_ms)
        snapshot, others = await self._server.ask_all(
            ("EXISTS", self._keys.snapshot(execution.snapshot_id or "")), ("ZCARD", self._keys.snapshots_of(id))
        )
        if not snapshot and not others:
            execution = replace(execution, snapshot_id=None)
        outcome = _outcome(execution, taken_at)
        answer = await self._server.run(
            *("restore_living", self._keys.prefix, self._backup, id, skew_ms, taken_at.isoformat(), FAR, _DUE_MS),
            "" if outcome is None else of_outcome(outcome),
        )
        if answer[0] == "ok" and answer[1] == b"FINISHED":
            return "lost"
        waited = execution.state in (ExecutionState.QUEUED, ExecutionState.HIBERNATED)
        return "waits" if waited else "resumes"


def _outcome(execution: Execution, taken_at: datetime) -> Outcome | None:
    """None: another attempt follows, or it was waiting for one anyway. A restore is nobody's failure: none is
    counted."""
    if execution.state in (ExecutionState.QUEUED, ExecutionState.HIBERNATED):
        return None
    if execution.wants.cancel is not None:
        return Outcome(OutcomeKind.CANCELLED, Reason.CANCELLED, execution.wants.cancel.reason)
    why = f"restored from a backup of {taken_at:%Y-%m-%d %H:%M:%S} UTC, when it was {execution.state}"
    try:
        resumes = harness_of(execution.spec).resumes
    except BadInput:
        resumes = False
    decision = decide(
        Cause.SANDBOX_LOST,
        failures=0,
        policy=execution.spec.retry,
        ran=execution.started_at is not None,
        resumes=resumes,
        files_intact=execution.snapshot_id is not None,
        detail=why,
    )
    if isinstance(decision, GiveUp):
        return decision.outcome
    if execution.state is ExecutionState.STOPPING:
        return Outcome(OutcomeKind.LOST, Reason.SANDBOX_LOST, why)
    return None


def _not_empty(what: str) -> Conflict:
    return Conflict(
        f"this installation is not empty: it has {what}",
        state="not empty",
        remedy="restore into an empty store and data directory, or under another installation name",
    )
