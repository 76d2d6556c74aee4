"""The journal of intents on Redis: the port `orchestrator.intents.Intents`. Knows nothing of what the calls are.

Writing is a script each, with the history's event in it; reading takes the record along, because an open intent of an
attempt that is over reads as in doubt.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from orchestrator.clock import from_ms
from orchestrator.errors import BadInput, Conflict, Fenced, KeyReused, NotFound, TooMany
from orchestrator.history import Lease
from orchestrator.intents import (
    INTENTS,
    JOURNAL_BYTES,
    KEY_BYTES,
    RESULT_BYTES,
    SUMMARY_BYTES,
    WORD_BYTES,
    Begun,
    Decision,
    Effect,
    Intent,
    IntentState,
)
from orchestrator.lifecycle import ExecutionState
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.history import refusal
from orchestrator.stores.redis.keys import Keys

#: What is read of the order at once.
_PAGE: Final = 500
#: The attempt the record names has no sandbox any more. lua/piece_intents.lua has the same.
_OVER: Final = frozenset(
    state.encode() for state in (ExecutionState.QUEUED, ExecutionState.HIBERNATED, ExecutionState.FINISHED)
)
_REPEATABLE: Final = frozenset({Effect.NONE, Effect.IDEMPOTENT})


def unsettled(text: str | bytes) -> bool:
    """Whether nobody would know the end of this one, should its attempt be over. lua/piece_intents.lua has the same."""
    of = json.loads(text)
    open_ = of["state"] == IntentState.OPEN.value and Effect(of["effect"]) not in _REPEATABLE
    return bool(open_ or of["state"] == IntentState.IN_DOUBT.value)


class RedisIntents:
    """See the port. `fenced` as in RedisHistory."""

    def __init__(
        self,
        server: Server,
        keys: Keys,
        *,
        fenced: bool = True,
        most: int = INTENTS,
        journal_bytes: int = JOURNAL_BYTES,
    ) -> None:
        self._server = server
        self._keys = keys
        self._fenced = int(fenced)
        self._most = most
        self._journal_bytes = journal_bytes

    async def begin(
        self, lease: Lease, *, attempt: int, key: str, run: str, kind: str, effect: Effect, summary: str, digest: str
    ) -> Begun:
        _check("key", key, KEY_BYTES, least=1, printable=True)
        for name, word in (("run", run), ("kind", kind), ("digest", digest)):
            _check(name, word, WORD_BYTES, least=1, printable=True)
        _check("summary", summary, SUMMARY_BYTES)
        answer = await self._server.run(
            *("intent_begin", self._keys.prefix, lease.execution_id, lease.epoch, self._fenced, attempt),
            *(key, run, kind, Effect(effect).value, summary, digest, self._most, self._journal_bytes),
        )
        match answer:
            case ["ok", int(go), bytes(text), bytes(result)]:
                return Begun(bool(go), _to_intent(key, text, result))
            case ["reused"]:
                raise KeyReused(
                    f"the intent {key!r} was begun before, with another digest", key=key, id=lease.execution_id
                )
            case ["full", int(limit), bytes(unit)]:
                raise TooMany(
                    f"{lease.execution_id} has {limit} {unit.decode()} in its journal, which is the most", limit=limit
                )
            case ["over", int(epoch), int(current)]:
                raise Fenced(
                    f"attempt {attempt} of {lease.execution_id} is over: it is in attempt {current}",
                    epoch=epoch,
                    attempt=current,
                )
            case _:
                raise refusal(answer, lease.execution_id)

    async def finish(self, lease: Lease, *, key: str, run: str, ok: bool, result: str) -> Intent:
        _check("result", result, RESULT_BYTES)
        answer = await self._server.run(
            *("intent_finish", self._keys.prefix, lease.execution_id, lease.epoch, self._fenced),
            *(key, run, int(ok), result),
        )
        return _intent_of(answer, lease.execution_id, key, "another run holds it", "begin it in this run")

    async def get(self, execution_id: str, key: str) -> Intent:
        standing, told = await self._server.ask_all(
            self._standing(execution_id), ("HMGET", self._keys.intents(execution_id), f"i:{key}", f"r:{key}")
        )
        _known(execution_id, standing)
        if told[0] is None:
            raise _unknown(execution_id, key)
        return _as_read(_to_intent(key, *told), standing)

    async def list(
        self, execution_id: str, *, states: frozenset[IntentState] = frozenset(), after: int = 0, limit: int = 100
    ) -> Sequence[Intent]:
        found: list[Intent] = []
        journal, order = self._keys.intents(execution_id), self._keys.intents_order(execution_id)
        after = max(after, 0)
        while True:
            count = _PAGE if states else max(min(_PAGE, limit - len(found)), 1)
            standing, names = await self._server.ask_all(
                self._standing(execution_id), ("LRANGE", order, after, after + count - 1)
            )
            _known(execution_id, standing)
            if not names or len(found) >= limit:
                return found
            fields = [prefix + name for name in names for prefix in (b"i:", b"r:")]
            told = await self._server.ask("HMGET", journal, *fields)
            for name, text, result in zip(names, told[::2], told[1::2], strict=True):
                if text is None:  # removed meanwhile
                    raise NotFound(f"no execution {execution_id}", kind="execution", id=execution_id)
                intent = _as_read(_to_intent(name.decode(), text, result), standing)
                if (not states or intent.state in states) and len(found) < limit:
                    found.append(intent)
            after += len(names)

    async def last(self, execution_id: str) -> int:
        return int(await self._server.ask("LLEN", self._keys.intents_order(execution_id)))

    async def settle(self, execution_id: str, key: str, decision: Decision, *, result: str, by: str) -> Intent:
        _check("result", result, RESULT_BYTES)
        _check("by", by, WORD_BYTES, least=1, printable=True)
        answer = await self._server.run(
            *("intent_settle", self._keys.prefix, execution_id, key, Decision(decision).value, result, by),
            secrets.token_hex(8),
        )
        return _intent_of(answer, execution_id, key, "it is not in doubt", "only what is in doubt can be settled")

    def _standing(self, execution_id: str) -> tuple[str, ...]:
        return ("HMGET", self._keys.record(execution_id), "state", "attempt")


def _to_intent(key: str, text: bytes, result: bytes | None) -> Intent:
    got = json.loads(text)
    return Intent(
        key=key,
        kind=got["kind"],
        effect=Effect(got["effect"]),
        summary=got["summary"],
        digest=got["digest"],
        attempt=got["attempt"],
        run=got["run"],
        n=got["n"],
        state=IntentState(got["state"]),
        begun_at=from_ms(got["begun"]),
        ended_at=from_ms(got["ended"]) if got.get("ended") else None,
        result=(result or b"").decode(),
        settled_by=got.get("by", ""),
    )


def _as_read(intent: Intent, standing: Sequence[bytes | None]) -> Intent:
    state, attempt = standing
    current = int(attempt or 0)
    over = intent.attempt < current or (intent.attempt == current and state in _OVER)
    if over and intent.state is IntentState.OPEN and intent.effect not in _REPEATABLE:
        return replace(intent, state=IntentState.IN_DOUBT)
    return intent


def _intent_of(answer: Sequence[Any], execution_id: str, key: str, why: str, remedy: str) -> Intent:
    match answer:
        case ["ok", bytes(text), bytes(result)]:
            return _to_intent(key, text, result)
        case ["unknown"]:
            raise _unknown(execution_id, key)
        case ["conflict", bytes(state)]:
            raise Conflict(
                f"the intent {key!r} of {execution_id} is {state.decode()}: {why}", state=state.decode(), remedy=remedy
            )
        case _:
            raise refusal(answer, execution_id)


def _known(execution_id: str, standing: Sequence[bytes | None]) -> None:
    if standing[0] is None:
        raise NotFound(f"no execution {execution_id}", kind="execution", id=execution_id)


def _unknown(execution_id: str, key: str) -> NotFound:
    return NotFound(f"{execution_id} has no intent {key!r}", kind="intent", id=key)


def _check(field: str, text: str, most: int, *, least: int = 0, printable: bool = False) -> None:
    limit = f"{least} to {most} bytes of UTF-8{', printable' if printable else ''}"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise BadInput(f"{field} is not text", field=field, limit=limit, remedy="send valid Unicode") from None
    if not least <= size <= most or (printable and not text.isprintable()):
        raise BadInput(
            f"{field} has {size} bytes" if not least <= size <= most else f"{field} has characters nobody can see",
            field=field,
            limit=limit,
            remedy="choose another" if printable else "shorten it: keep the whole in a file",
        )
