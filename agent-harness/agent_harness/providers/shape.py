"""What every provider's dialect is translated to and from. Knows no HTTP and none of the dialects.

A block of an answer is a JSON object, journaled as it is:
    {"kind": "text", "text"}
    {"kind": "thought", "text", "opaque"?}      opaque: what the provider wants back unchanged
    {"kind": "call", "id", "name", "arguments"} arguments: the text as the model wrote it, perhaps no JSON
An item of the conversation is one of
    {"role": "user", "text"} · {"role": "assistant", "n", "blocks"} · {"role": "tool", "id", "text", "ok"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

NOTHING = "(nothing)"  # stands for an answer or a result without content: providers refuse an empty one

Block = dict[str, Any]
Item = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """As the model is told of it. `parameters`: a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Asking:
    """One request. `output_tokens` None = the provider's own limit, where it has one."""

    model: str
    system: str
    items: Sequence[Item]
    tools: Sequence[Tool]
    output_tokens: int | None = None
    thinking_tokens: int | None = None


@dataclass(frozen=True)
class Piece:
    """What a stream brings for people: `kind` text or thought."""

    kind: str
    text: str


@dataclass
class Answer:
    """Grows while its stream is read. `stop`: end, calls, length, refusal; "" = it has not said yet. `usage`:
    input, output, cache_read, cache_write in tokens, input without the cached. `whole`: its last mark was seen."""

    blocks: list[Block] = field(default_factory=list)
    stop: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    whole: bool = False

    def text(self) -> str:
        """What it says, without thoughts and calls."""
        return "".join(block["text"] for block in self.blocks if block["kind"] == "text")


class ProviderError(Exception):
    """The provider says no inside a stream. `again`: trying once more may help."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


class Reader(Protocol):
    """Of one answer's stream."""

    answer: Answer

    def feed(self, event: Mapping[str, Any]) -> list[Piece]:
        """One event's JSON. Raises ProviderError; KeyError, TypeError for what is none of this dialect."""


class Provider(Protocol):
    """One dialect."""

    url_variable: str
    key_variable: str
    default_url: str
    path: str

    def headers(self, key: str) -> dict[str, str]:
        """Those that authorize; none of the content's."""

    def body(self, asking: Asking) -> dict[str, Any]:
        """The request: a pure function of what is asked."""

    def reader(self) -> Reader:
        """A new one for each answer."""


def in_turns(items: Sequence[Item]) -> list[list[Item]]:
    """Neighbours that are all the assistant's, or all not, together: some providers want roles to alternate."""
    turns: list[list[Item]] = []
    for item in items:
        ours = item["role"] == "assistant"
        if turns and (turns[-1][0]["role"] == "assistant") == ours:
            turns[-1].append(item)
        else:
            turns.append([item])
    return turns
