"""A turn made into the answer of one request: its calls for the tools that are offered, its ids, what it counts.

Ids come from the script's name and the number of answers so far: the same request gets the same bytes, always. Knows no
format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from scripted_model.asked import Asked, tokens
from scripted_model.choosing import Chosen
from scripted_model.commands import fenced, tool_call
from scripted_model.script import Call

CREATED_AT: Final = 1_750_000_000  # Unix seconds; one moment, so that answers compare equal
SAID_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class Usage:
    """`input_tokens` without those of the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int
    thought_tokens: int

    @property
    def all_input(self) -> int:
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """`cut_short`: the request's own limit of output ended it."""

    seed: str
    thought: str
    text: str
    calls: tuple[Call, ...]
    cut_short: bool
    usage: Usage
    piece_chars: int

    def id(self, prefix: str, number: int = 0) -> str:
        """One of this answer's ids, 24 hexadecimal digits after the prefix."""
        return prefix + hashlib.sha256(f"{self.seed}/{prefix}/{number}".encode()).hexdigest()[:24]

    def pieces(self, text: str) -> Iterator[str]:
        """The text in the pieces in which it is streamed; none of an empty one."""
        for start in range(0, len(text), self.piece_chars):
            yield text[start : start + self.piece_chars]


def arguments_text(call: Call) -> str:
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False)


def compose(chosen: Chosen, asked: Asked) -> Answer:
    """Raises BadRequest where a command is to be run and no tool offered does that."""
    turn = chosen.turn
    said = " ".join((asked.said[-1].text if asked.said else "").split())[:SAID_CHARS]
    text = turn.text.replace("{{said}}", said)
    thought = turn.thought.replace("{{said}}", said) if asked.thoughts else ""
    calls = list(turn.calls)
    for command in turn.run:
        if asked.tools:
            calls.append(tool_call(asked, command))
        else:
            text = "\n\n".join(filter(None, (text, fenced(asked, command))))
    thought, text, kept, cut_short = _fit(asked.output_limit_tokens, thought, text, calls)
    counted: dict[str, Any] = dict(turn.usage)
    return Answer(
        seed=f"{chosen.script.name}/{chosen.answers}",
        thought=thought,
        text=text,
        calls=tuple(kept),
        cut_short=cut_short,
        usage=Usage(
            input_tokens=counted.get("input_tokens", asked.input_tokens),
            output_tokens=counted.get("output_tokens", _size(thought, text, kept)),
            cache_read_tokens=counted.get("cache_read_tokens", 0),
            cache_write_tokens=counted.get("cache_write_tokens", 0),
            thought_tokens=tokens(thought) if thought else 0,
        ),
        piece_chars=turn.piece_chars,
    )


def _size(thought: str, text: str, calls: list[Call]) -> int:
    return tokens(thought, text, *(call.name + arguments_text(call) for call in calls))


def _fit(limit: int | None, thought: str, text: str, calls: list[Call]) -> tuple[str, str, list[Call], bool]:
    """As a provider does with max_tokens: the answer ends there, a call that does not fit is not made."""
    if limit is None or _size(thought, text, calls) <= limit:
        return thought, text, calls, False
    chars = limit * 4
    thought = thought[:chars]
    text = text[: chars - len(thought)]
    kept: list[Call] = []
    for call in calls:
        if _size(thought, text, [*kept, call]) > limit:
            break
        kept.append(call)
    return thought, text, kept, True
