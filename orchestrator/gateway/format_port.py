"""The seam of the three protocols: what the gateway needs to know of an answer, whoever gave it. Pure.

A stream is read event by event as it passes: has it ended by its own mark, what did it cost, was it an error after all.
A whole answer can be turned from a stream into JSON and back, for a client that asks again in the other way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum, auto
from typing import Any, Protocol

from orchestrator.calls import ModelUsage
from orchestrator.gateway.sse import SseEvent


class Seen(Enum):
    """What one event is to whoever passes it on."""

    PART = auto()
    SPARE = auto()  # there because the gateway asked for it; not for a client that did not
    LAST = auto()  # the mark: the answer is whole
    ERROR = auto()  # the provider says that it failed


class StreamReading(Protocol):
    """Reads one stream. `usage` without a cost; None until the provider said. `output_bytes`: of text and arguments so
    far, roughly. `failed`: it ended by its mark, and what it says is that it failed: no answer worth keeping."""

    usage: ModelUsage | None
    output_bytes: int
    failed: bool

    def see(self, event: SseEvent) -> Seen:
        """In order, each once."""


class Format(Protocol):
    """One protocol."""

    def reading(self) -> StreamReading: ...

    def status(self, event: SseEvent) -> int:
        """The HTTP status that an event of Seen.ERROR would have been, had it come in time, with its data as the body;
        0: its data is no such body."""

    def usage(self, body: dict[str, Any]) -> ModelUsage | None:
        """What a JSON answer says it cost; None: it does not say."""

    def is_answer(self, body: dict[str, Any]) -> bool:
        """False for a failure that came as a success."""

    def assembled(self, events: Sequence[SseEvent]) -> dict[str, Any]:
        """A whole stream as the JSON that a client would have got which had not asked for one. Raises ValueError."""

    def streamed(self, body: dict[str, Any]) -> list[bytes]:
        """A JSON answer as a stream's events, the mark included. Raises ValueError."""


class Text:
    """A text that comes in many pieces: adding one does not copy those before it."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = list(pieces)

    def __str__(self) -> str:
        return "".join(self.pieces)


def load(data: bytes) -> dict[str, Any]:
    """An event's JSON object; {} where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def dump(value: Any) -> bytes:
    """JSON in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def count(value: object) -> int:
    """A provider's figure; 0 where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def part(value: object) -> dict[str, Any]:
    """An object within an answer; {} where there is none."""
    return value if isinstance(value, dict) else {}


def parts(value: object) -> list[dict[str, Any]]:
    """The objects of a list within an answer."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
