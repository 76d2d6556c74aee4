"""A client of the platform's journal of intents: ask before doing, tell what came of it. Knows nothing of what is done.

The journal is the worker's, behind the sandbox's gateway (`POST /carrel/v1/intents`, `…/finish`, `GET …?key=`); it lies
outside the workspace, so it remembers what a restored `/state` has forgotten. Every request may be asked twice: `run`,
one word for the life of this process, says that it is still the same one asking. So a gateway that is away (503, no
connection, a cut answer: a worker died and the next one has not come yet) is asked again until `patience_s` is over.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

KEY_BYTES = 256  # of UTF-8, printable
SUMMARY_BYTES = 4096
RESULT_BYTES = 64 * 1024
EFFECTS = ("none", "idempotent", "once", "unknown")

PATIENCE_S = 900.0
NO_OUTLET_S = 10.0  # nobody listens: init does before any program runs, so there is no gateway here at all
_ANSWER_S = 60.0  # of silence; the request is asked again
_WAIT_S = 30  # of one question that waits for a decision
_PAUSES_S = (0.05, 0.1, 0.2, 0.5, 1.0)


class IntentError(Exception):
    """The journal says no: `code` is stable, `remedy` says what to do. Asking again would not help."""

    def __init__(self, message: str, *, code: str = "", field: str = "", limit: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.field = field
        self.limit = limit
        self.remedy = remedy

    def __str__(self) -> str:
        said = [self.message, f"limit: {self.limit}" if self.limit else "", self.remedy]
        return "; ".join(part for part in said if part)


class GatewayAway(IntentError):
    """The gateway did not answer for the whole of the patience. Nothing is known: a `begin` may have been written."""


@dataclass(frozen=True)
class Intent:
    """One entry, as the journal has it. `state`: open, done, failed, in_doubt, retry. `settled_by`: who decided it."""

    key: str
    state: str
    kind: str = ""
    effect: str = "unknown"
    summary: str = ""
    digest: str = ""
    attempt: int = 0
    run: str = ""
    n: int = 0
    begun_at: str = ""
    ended_at: str = ""
    result: str = ""
    settled_by: str = ""

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Intent:
        """Fields we do not know are left out: a newer gateway may say more."""
        known = {name: said[name] for name in cls.__dataclass_fields__ if said.get(name) is not None}
        return cls(**known)


@dataclass(frozen=True)
class Begun:
    """`go`: do it now. Otherwise `intent.state` says why not: done or failed (with its result), in_doubt."""

    go: bool
    intent: Intent


class Journal:
    """Blocking; for one thread. `gave_up`: asked between tries; true ends them with GatewayAway."""

    def __init__(
        self,
        gateway: str,
        token: str,
        *,
        run: str = "",
        patience_s: float = PATIENCE_S,
        gave_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """`gateway`: CARREL_GATEWAY, http://host:port. Raises ValueError for anything else."""
        parts = urlsplit(gateway)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"CARREL_GATEWAY is {gateway!r}: it must be http://host:port")
        self.run = run or os.urandom(8).hex()
        self._host = parts.hostname
        self._port = parts.port or 80
        self._token = token
        self._patience_s = patience_s
        self._gave_up = gave_up

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **more: Any) -> Journal | None:
        """None outside a sandbox with a gateway. Raises ValueError as the constructor."""
        gateway = environ.get("CARREL_GATEWAY", "")
        return cls(gateway, environ.get("CARREL_GATEWAY_TOKEN", ""), **more) if gateway else None

    def begin(self, key: str, *, kind: str, effect: str, summary: str, digest: str) -> Begun:
        """Before acting. `digest`: of what would be done; the same key with another one is refused. A summary that is
        too long is cut. Raises IntentError, GatewayAway."""
        asked = {
            "key": key,
            "run": self.run,
            "kind": kind,
            "effect": effect,
            "summary": cut(summary, SUMMARY_BYTES),
            "digest": digest,
        }
        said = self._ask("POST", "/carrel/v1/intents", asked)
        return Begun(bool(said["go"]), Intent.read(said["intent"]))

    def finish(self, key: str, *, ok: bool, result: str) -> Intent:
        """After acting. `result` at most RESULT_BYTES of UTF-8, cut above. Raises IntentError (`conflict`: another run
        holds it now), GatewayAway."""
        asked = {"key": key, "run": self.run, "ok": ok, "result": cut(result, RESULT_BYTES)}
        return Intent.read(self._ask("POST", "/carrel/v1/intents/finish", asked)["intent"])

    def get(self, key: str, *, wait_s: int = 0) -> Intent:
        """As it is; `wait_s`: while it is in doubt, at most so long. Raises IntentError (`not_found`), GatewayAway."""
        path = f"/carrel/v1/intents?key={quote(key, safe='')}&wait_s={wait_s}"
        return Intent.read(self._ask("GET", path, answer_s=_ANSWER_S + wait_s)["intent"])

    def decision(self, key: str) -> Intent:
        """Wait, for as long as it takes, until somebody has settled it. Then its state is retry (begin it again), done
        or failed. Raises as `get`."""
        while True:
            intent = self.get(key, wait_s=_WAIT_S)
            if intent.state != "in_doubt":
                return intent
            if self._gave_up():
                raise GatewayAway(f"gave up waiting for a decision on {key!r}", code="gave_up")

    # -- asking ----------------------------------------------------------------------------------------------------

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, answer_s: float = _ANSWER_S
    ) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        began = time.monotonic()
        patience_s, tries = self._patience_s, 0
        while True:
            try:
                return self._ask_once(method, path, data, answer_s)
            except ConnectionRefusedError as problem:
                patience_s, why = min(patience_s, NO_OUTLET_S), str(problem)
            except (OSError, http.client.HTTPException, _Again) as problem:
                patience_s, why = self._patience_s, str(problem) or type(problem).__name__
            pause_s = _PAUSES_S[min(tries, len(_PAUSES_S) - 1)]
            tries += 1
            if time.monotonic() + pause_s - began > patience_s or self._gave_up():
                raise GatewayAway(
                    f"the gateway at {self._host}:{self._port} does not answer: {why}",
                    code="unavailable",
                    limit=f"{tries} tries in {time.monotonic() - began:.0f} s",
                    remedy="ask again: nothing was decided",
                )
            time.sleep(pause_s)

    def _ask_once(self, method: str, path: str, data: bytes | None, answer_s: float) -> dict[str, Any]:
        # One connection is one exchange: init's outlet can then carry it to whoever owns the execution by now.
        line = http.client.HTTPConnection(self._host, self._port, timeout=answer_s)
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Connection": "close"}
            if data is not None:
                headers["Content-Type"] = "application/json"
            line.request(method, path, data, headers)
            answer = line.getresponse()
            said = answer.read()
        finally:
            line.close()
        try:
            content = json.loads(said)
        except ValueError:
            content = None
        if answer.status == 200 and isinstance(content, dict):
            return content
        error = content.get("error") if isinstance(content, dict) else None
        told: dict[str, Any] = error if isinstance(error, dict) else {}
        message = str(told.get("message") or f"HTTP {answer.status} {answer.reason}")
        if answer.status >= 500 or (answer.status == 429 and answer.getheader("Retry-After")):
            raise _Again(message)
        raise IntentError(
            message,
            code=str(told.get("code") or answer.status),
            field=str(told.get("field") or ""),
            limit=str(told.get("limit") or ""),
            remedy=str(told.get("remedy") or ""),
        )


class _Again(Exception):
    """The gateway answers, its store does not, or its lease is in question."""


def cut(text: str, limit_bytes: int) -> str:
    """At most so many bytes of UTF-8; what stands for undecodable bytes becomes �."""
    data = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode()
    return data[:limit_bytes].decode("utf-8", "ignore")
