"""The journal of intents and the spend, as the sandbox asks for them. Knows no store but through the port.

`key`, `run`, `kind`, … are the harness's words; the bounds of each are the port's.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final

from orchestrator.errors import BadInput, CarrelError, Closed, Conflict, Fenced, NotFound, TooMany, Unavailable
from orchestrator.execution import Budget, Spend
from orchestrator.gateway.asking import parsed
from orchestrator.gateway.first import first
from orchestrator.gateway.refusals import Refused
from orchestrator.history import Lease
from orchestrator.intents import Effect, Intent, Intents, IntentState

BODY_BYTES: Final = 256 << 10
WAIT_S: Final = 600.0  # the longest one request waits for a decision; ask again
_STATUS: Final[tuple[tuple[type[CarrelError], int], ...]] = (
    (BadInput, 422),
    (NotFound, 404),
    (Conflict, 409),
    (TooMany, 429),
    (Fenced, 503),
    (Closed, 503),
    (Unavailable, 503),
)


class JournalRoutes:
    """For one attempt under one lease."""

    def __init__(self, intents: Intents, lease: Lease, attempt: int) -> None:
        self._intents = intents
        self._lease = lease
        self._attempt = attempt
        self._news = asyncio.Event()

    def woken(self) -> None:
        """Something was decided, perhaps here."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def begin(self, raw: bytes) -> dict[str, Any]:
        """Raises Refused, as all here do."""
        said = parsed(raw)
        effect = _text(said, "effect", default=Effect.UNKNOWN)
        if effect not in list(Effect):
            raise Refused(422, "invalid", f"no effect {effect[:64]!r}", field="effect", limit=" | ".join(Effect))
        try:
            begun = await self._intents.begin(
                self._lease,
                attempt=self._attempt,
                key=_text(said, "key"),
                run=_text(said, "run"),
                kind=_text(said, "kind"),
                effect=Effect(effect),
                summary=_text(said, "summary", default=""),
                digest=_text(said, "digest", default=""),
            )
        except CarrelError as error:
            raise refused(error) from error
        return {"go": begun.go, "intent": shown(begun.intent)}

    async def finish(self, raw: bytes) -> dict[str, Any]:
        said = parsed(raw)
        ok = said.get("ok")
        if not isinstance(ok, bool):
            raise Refused(422, "invalid", "ok is true or false", field="ok", limit="true | false")
        try:
            intent = await self._intents.finish(
                self._lease,
                key=_text(said, "key"),
                run=_text(said, "run"),
                ok=ok,
                result=_text(said, "result", default=""),
            )
        except CarrelError as error:
            raise refused(error) from error
        return {"intent": shown(intent)}

    async def get(self, key: str, wait_s: str, gone: asyncio.Future[bool]) -> dict[str, Any]:
        """The intent; while it is in doubt, not before `wait_s` are over. `gone`: nobody waits any more."""
        limit_s = _seconds(wait_s)
        loop = asyncio.get_running_loop()
        until = loop.time() + limit_s
        while True:
            news = self._news  # before it is read: a decision that comes between is not slept through
            try:
                intent = await self._intents.get(self._lease.execution_id, key)
            except CarrelError as error:
                raise refused(error) from error
            left_s = until - loop.time()
            if intent.state is not IntentState.IN_DOUBT or left_s <= 0 or gone.done():
                return {"intent": shown(intent)}
            await first(news.wait(), gone, timeout_s=left_s)


def spend_shown(spend: Spend, budget: Budget) -> dict[str, Any]:
    return {
        "micros": spend.micros,
        "input_tokens": spend.input_tokens,
        "output_tokens": spend.output_tokens,
        "calls": spend.calls,
        "replays": spend.replays,
        "limit_micros": budget.micros,
        "limit_tokens": budget.tokens,
    }


def shown(intent: Intent) -> dict[str, Any]:
    """The noun's fields."""
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in asdict(intent).items()}


def refused(error: CarrelError) -> Refused:
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    made = Refused.of(error, status)
    made.message = error.message  # the remedy stands beside it
    if status == 503:
        made.retry_after_s = 1
    return made


def as_json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _text(said: dict[str, Any], name: str, *, default: str | None = None) -> str:
    value = said.get(name, default)
    if not isinstance(value, str):
        raise Refused(422, "invalid", f"{name} is a text", field=name, limit="text", remedy=f"send {name} as a string")
    return value


def _seconds(text: str) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= WAIT_S:
        raise Refused(
            422,
            "invalid",
            f"wait_s is 0 to {WAIT_S:.0f} seconds",
            field="wait_s",
            limit=f"0..{WAIT_S:.0f}",
            remedy="ask again for longer",
        )
    return seconds
