"""A model request with its provider's dialect taken off: who said what, which tools are offered. Knows no script.

The formats read into this and write from an Answer; everything between them is the same for all three.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# What clients add that changes no answer: two requests that differ only here are the same one.
IDLE_FIELDS: Final = frozenset(
    {"stream", "stream_options", "metadata", "client_metadata", "prompt_cache_key", "safety_identifier", "user"}
)


class BadRequest(ValueError):
    """The request cannot be answered; becomes the provider's own 400."""


@dataclass(frozen=True, slots=True)
class Said:
    """One message: `role` user, assistant or tool (a result)."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Tool:
    """One that is offered. `kind`: function, or the provider's own type (custom, local_shell, bash_20250124 …)."""

    name: str
    kind: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """`thoughts`: the request wants them. `usage_chunk`: chat's include_usage. `output_limit_tokens`: None = none."""

    model: str
    system: str
    said: tuple[Said, ...]
    tools: tuple[Tool, ...]
    stream: bool
    thoughts: bool
    usage_chunk: bool
    output_limit_tokens: int | None
    input_tokens: int
    body: Mapping[str, Any]

    @property
    def last(self) -> tuple[Said, ...]:
        """What was said since the last answer, by anybody but the model."""
        rest = itertools.takewhile(lambda one: one.role != "assistant", reversed(self.said))
        return tuple(reversed(list(rest)))


def canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(
        {name: value for name, value in body.items() if name not in IDLE_FIELDS},
        sort_keys=True,
        separators=(",", ":"),
    ).encode()


def digest(path: str, body: Mapping[str, Any]) -> str:
    """Names one request: equal for the same question, streamed or not, whoever asks."""
    return hashlib.sha256(path.encode() + b"\n" + canonical(body)).hexdigest()


def tokens(*parts: object) -> int:
    """A quarter of the characters, rounded up: not what a real tokenizer says, and the same every time."""
    chars = sum(len(p) if isinstance(p, str) else len(json.dumps(p, ensure_ascii=False)) for p in parts if p)
    return max(1, -(-chars // 4))


def text_of(content: object) -> str:
    """The text in a content of any of the formats: a text, or a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(filter(None, map(text_of, content)))
    if isinstance(content, dict):
        for name in ("text", "content", "output"):
            if name in content:
                return text_of(content[name])
    return ""


def listed(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A field that is a list of objects, [] when it is not there. Raises BadRequest."""
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadRequest(f"{name}: must be a list of objects")
    return value


def model_of(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("model: must be the name of a model")
    return model


def limit_of(body: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = body.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BadRequest(f"{name}: must be a whole number from 1")
            return value
    return None
