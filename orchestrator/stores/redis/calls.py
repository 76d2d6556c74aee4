"""The record of model calls on Redis: the port `orchestrator.calls.Calls`. Knows no provider and no price.

Each method is one script; the history's events and the record's money are written by it. Answers are kept compressed
in the execution's own hash, and go with its end: nobody can ask again then.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from orchestrator.calls import RECORD_BYTES, RECORDS_BYTES, Answer, Asked, ModelUsage, OverBudget, Replay, Reserved
from orchestrator.errors import NotFound
from orchestrator.execution import Spend
from orchestrator.history import Lease
from orchestrator.stores.redis.connection import Argument, Server
from orchestrator.stores.redis.history import refusal
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.record import dumps

#: Packing more than this would hold the event loop for more than a few milliseconds.
_IN_A_THREAD_BYTES: Final = 256 * 1024
#: Of an event's data, what is ours to say.
_OURS: Final = frozenset({"call", "cost_micros", "replayed", "epoch", "why", "on_exceeded"})


class RedisCalls:
    """See the port. `fenced` as in RedisHistory."""

    def __init__(self, server: Server, keys: Keys, *, fenced: bool = True, records_bytes: int = RECORDS_BYTES) -> None:
        self._server = server
        self._keys = keys
        self._fenced = int(fenced)
        self._records_bytes = records_bytes

    async def recover(self, lease: Lease) -> int:
        match await self._run("call_recover", lease):
            case ["ok", int(count)]:
                return count
            case answer:
                raise refusal(answer, lease.execution_id)

    async def begin(self, lease: Lease, attempt: int, asked: Asked) -> Replay | Reserved | OverBudget:
        answer = await self._run(
            "call_begin",
            lease,
            attempt,
            _name(asked),
            asked.digest,
            asked.reserve.cost_micros,
            asked.reserve.tokens,
            *_used(asked.if_cut),
            _facts(asked.facts),
            secrets.token_hex(8),
        )
        match answer:
            case ["replay", bytes(call), bytes(packed)]:
                return Replay(call.decode(), await _unpack(packed))
            case ["reserved", bytes(call), list(told)]:
                return Reserved(call.decode(), Spend(*told))
            case ["over", list(told), int(micros), int(tokens), limit_micros, limit_tokens, int(wait)]:
                return OverBudget(Spend(*told), micros, tokens, limit_micros, limit_tokens, bool(wait))
            case _:
                raise refusal(answer, lease.execution_id)

    async def finish(
        self, lease: Lease, call: str, answer: Answer | None, usage: ModelUsage, facts: Mapping[str, Any]
    ) -> Spend:
        packed = await _pack(answer) if answer is not None and len(answer.body) <= RECORD_BYTES else b""
        return await self._end(lease, call, "finish", usage, facts=facts, packed=packed)

    async def cut(self, lease: Lease, call: str, usage: ModelUsage, why: str) -> Spend:
        return await self._end(lease, call, "cut", usage, why=why)

    async def cancel(self, lease: Lease, call: str) -> Spend:
        return await self._end(lease, call, "cancel", ModelUsage())

    async def delivered(self, lease: Lease, attempt: int, call: str) -> None:
        answer = await self._run("call_delivered", lease, attempt, call)
        if answer[0] != "ok":
            raise _refusal(answer, lease, call)

    async def _end(
        self,
        lease: Lease,
        call: str,
        how: str,
        usage: ModelUsage,
        *,
        facts: Mapping[str, Any] | None = None,
        why: str = "",
        packed: bytes = b"",
    ) -> Spend:
        answer = await self._run(
            "call_end", lease, call, how, *_used(usage), _facts(facts or {}), why, packed, self._records_bytes
        )
        match answer:
            case ["ok", list(told)]:
                return Spend(*told)
            case _:
                raise _refusal(answer, lease, call)

    async def _run(self, script: str, lease: Lease, *args: Argument) -> list[Any]:
        return await self._server.run(script, self._keys.prefix, lease.execution_id, lease.epoch, self._fenced, *args)


def _refusal(answer: Sequence[Any], lease: Lease, call: str) -> Exception:
    if answer[0] == "unknown":
        return NotFound(f"{lease.execution_id} has no model call {call!r}", kind="call", id=call)
    return refusal(answer, lease.execution_id)


def _name(asked: Asked) -> str:
    """Of a call with a key: the same in every attempt. Hashed, because a key may be long."""
    if not asked.key:
        return ""
    return "k " + hashlib.sha256(f"{asked.key}\0{asked.digest}".encode()).hexdigest()[:32]


def _used(usage: ModelUsage) -> tuple[Argument, ...]:
    """What it cost, what counts as input and as output, and the tokens as the members of an event's data."""
    told = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "estimated": usage.estimated,
    }
    return usage.cost_micros, usage.tokens - usage.output_tokens, usage.output_tokens, dumps(told)[1:-1]


_TOLD: Final = frozenset(json.loads("{" + str(_used(ModelUsage())[3]) + "}"))


def _facts(facts: Mapping[str, Any]) -> str:
    """As members of an event's data, with a comma before them. What is ours to say cannot be said by them."""
    own = {name: value for name, value in facts.items() if name not in _OURS | _TOLD}
    return "," + dumps(own)[1:-1] if own else ""


async def _pack(answer: Answer) -> bytes:
    head = dumps({"status": answer.status, "headers": dict(answer.headers), "streamed": answer.streamed})
    plain = head.encode() + b"\n" + answer.body
    if len(plain) > _IN_A_THREAD_BYTES:
        return await asyncio.to_thread(zlib.compress, plain)
    return zlib.compress(plain)


async def _unpack(packed: bytes) -> Answer:
    if len(packed) > _IN_A_THREAD_BYTES:
        plain = await asyncio.to_thread(zlib.decompress, packed)
    else:
        plain = zlib.decompress(packed)
    head, _, body = plain.partition(b"\n")
    told = json.loads(head)
    return Answer(told["status"], told["headers"], body, told["streamed"])
