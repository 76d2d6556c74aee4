"""One model call: asked, streamed, tried again under the same Idempotency-Key until it is whole. Knows HTTP; not what
the conversation is about.

The key of request n is `m<n>`: a gateway that has the answer already gives it again, so a crash costs no second call.
"""

from __future__ import annotations

import http.client
import json
import random
import re
import time
from typing import Any
from urllib.parse import urlsplit

from agent_harness.config import Config
from agent_harness.providers.shape import Answer, Asking, Piece, ProviderError
from agent_harness.signals import Interrupted, Signals
from agent_harness.speak import Voice
from agent_harness.sse import Events

SILENCE_S = 900.0  # of a stream, or before it: models think long, and a budget may hold a call
PAUSE_S, PAUSE_MAX_S = 0.25, 30.0
CHUNK_CHARS = 16_000  # of one event
FLUSH_S = 0.1  # pieces are gathered so long: an event each would be thousands
_AGAIN = {408, 409, 425, 429}
_CONFIGURATION = {401, 403, 404}
_OVERFLOW = re.compile(
    r"prompt is too long|context.?(length|window)|maximum context|too many (input )?tokens|input is too long",
    re.IGNORECASE,
)


class ModelError(Exception):
    """The provider, or the gateway before it, says no; or it was tried for too long."""


class BudgetExceeded(ModelError):
    """402: the call would cost more than is left. The message holds the figures."""


class ContextOverflow(ModelError):
    """The conversation is too long for the model."""


class Misconfigured(ModelError):
    """No such model, not allowed, no such key: trying again would not help."""


class Cut(Exception):
    """A person interrupted it; `answer` is what had come."""

    def __init__(self, answer: Answer) -> None:
        super().__init__("interrupted")
        self.answer = answer


class _Again(Exception):
    """It may go better next time; `after_s` is the provider's own word, or None."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


class Model:
    """Blocking, for the main thread."""

    def __init__(self, config: Config, voice: Voice, signals: Signals) -> None:
        self._config = config
        self._voice = voice
        self._signals = signals
        parts = urlsplit(config.base_url)
        self._https = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/") + config.provider.path

    def ask(self, n: int, asking: Asking, *, aloud: bool = True) -> Answer:
        """The whole answer of request n; its thoughts and text are told as they come, if `aloud`. Raises Cut,
        Cancelled, ModelError."""
        body = json.dumps(self._config.provider.body(asking)).encode()
        saying = Saying(self._voice if aloud else None, f"m{n}")
        until = time.monotonic() + self._config.retry_s
        tries = 0
        while True:
            reader = self._config.provider.reader()
            try:
                self._stream(f"m{n}", body, reader.feed, reader.answer, saying)
            except Interrupted:
                saying.flush()
                raise Cut(reader.answer) from None
            except _Again as problem:
                saying.again()
                tries += 1
                pause_s = min(PAUSE_S * 2 ** (tries - 1), PAUSE_MAX_S) * random.uniform(0.75, 1.25)
                pause_s = max(pause_s, problem.after_s or 0.0)
                if time.monotonic() + pause_s > until:
                    raise ModelError(f"gave up after {tries} tries: {problem}") from None
                self._voice.say("progress", text=f"model call m{n}: {problem}; asking again in {pause_s:.1f} s")
                try:
                    with self._signals.stoppable():
                        time.sleep(pause_s)
                except Interrupted:
                    raise Cut(reader.answer) from None
            else:
                saying.flush()
                return _named(reader.answer, n)

    def _stream(self, key: str, body: bytes, feed: Any, answer: Answer, saying: Saying) -> None:
        """One try. Only waiting is `stoppable`: half an event must not be spoken."""
        line: http.client.HTTPConnection
        kind = http.client.HTTPSConnection if self._https else http.client.HTTPConnection
        line = kind(self._host, self._port, timeout=SILENCE_S)
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "Idempotency-Key": key,
            "Connection": "close",
            **self._config.provider.headers(self._config.key),
        }
        try:
            with self._signals.stoppable():
                line.request("POST", self._path, body, headers)
                response = line.getresponse()
            if response.status != 200:
                with self._signals.stoppable():
                    said = response.read(65536)
                _refuse(response.status, response.headers.get("Retry-After", ""), said)
            events = Events()
            while not events.done:
                with self._signals.stoppable():
                    data = response.read1(65536)
                if not data:
                    break
                for event in events.feed(data):
                    saying.add(feed(event))
        except ProviderError as problem:
            if _OVERFLOW.search(str(problem)):
                raise ContextOverflow(str(problem)) from None
            if problem.again:
                raise _Again(str(problem)) from None
            raise ModelError(str(problem)) from None
        except (OSError, http.client.HTTPException) as problem:
            if not answer.whole:
                raise _Again(f"{type(problem).__name__}: {problem}") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as problem:
            raise _Again(f"not a stream of this kind: {type(problem).__name__}: {problem}") from None
        finally:
            line.close()
        if not answer.whole:
            raise _Again("the stream broke off")


def _refuse(status: int, after: str, body: bytes) -> None:
    """Raises what the status and the error in the body mean."""
    text = body.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        code = str(error.get("code") or "") + " " + str(error.get("type") or "")
        message = str(error.get("message") or text)
    except (ValueError, KeyError, TypeError, AttributeError):
        code, message = "", text.strip()[:2000]
    told = f"HTTP {status}: {message}"
    if status == 402 or "budget_exceeded" in code:
        raise BudgetExceeded(message)
    if status in (400, 413) and (_OVERFLOW.search(message) or "context_length" in code):
        raise ContextOverflow(told)
    if status in _AGAIN or status >= 500:
        raise _Again(told, float(after) if re.fullmatch(r"\d{1,4}(\.\d+)?", after) else None)
    raise (Misconfigured if status in _CONFIGURATION else ModelError)(told)


def _named(answer: Answer, n: int) -> Answer:
    """Every call with an id of its own: some servers send none, or the same twice."""
    seen: set[str] = set()
    for i, block in enumerate(block for block in answer.blocks if block["kind"] == "call"):
        if not block["id"] or block["id"] in seen:
            block["id"] = f"call_{n}_{i}"
        seen.add(block["id"])
    return answer


class Saying:
    """What a stream has told so far, over all its tries: nothing is told twice, and each chunk says where it belongs
    (`message`, and `at` in characters of its kind), so that readers can put together what a crash made come again."""

    def __init__(self, voice: Voice | None, message: str) -> None:
        self._voice = voice
        self._message = message
        self._told: dict[str, str] = {}
        self._now: dict[str, str] = {}
        self._flushed_at = 0.0

    def add(self, pieces: list[Piece]) -> None:
        """Told now, or with those that follow at once."""
        for piece in pieces:
            self._now[piece.kind] = self._now.get(piece.kind, "") + piece.text
            if any(kind != piece.kind for kind in self._now):
                self.flush(only=[kind for kind in self._now if kind != piece.kind])
        if pieces and time.monotonic() - self._flushed_at > FLUSH_S:
            self.flush()

    def again(self) -> None:
        """Another try: it begins from its beginning."""
        self._now = {}

    def flush(self, only: list[str] | None = None) -> None:
        """Tell what is not told yet."""
        for kind in only if only is not None else list(self._now):
            now, told = self._now[kind], self._told.get(kind, "")
            if told.startswith(now):
                continue
            at = len(told) if now.startswith(told) else 0
            self._told[kind] = now
            event = "agent_thought_chunk" if kind == "thought" else "agent_message_chunk"
            for start in range(at, len(now), CHUNK_CHARS):
                if self._voice is not None:
                    self._voice.say(event, message=self._message, at=start, text=now[start : start + CHUNK_CHARS])
        self._flushed_at = time.monotonic()
