"""The three dialects by their path; errors and the list of models, which are no answer. Knows no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from scripted_model import anthropic_messages, openai_chat, openai_responses
from scripted_model.answer import CREATED_AT, Answer
from scripted_model.asked import Asked

MODEL: Final = "scripted"  # what the list of models says; any name is served
COUNT_TOKENS: Final = "/v1/messages/count_tokens"


@dataclass(frozen=True, slots=True)
class Format:
    """One provider's dialect."""

    read: Callable[[Mapping[str, Any]], Asked]
    whole: Callable[[Asked, Answer], dict[str, Any]]
    events: Callable[[Asked, Answer], Iterator[bytes]]
    broken: Callable[[Asked, Answer], bytes]
    error: Callable[[int, str], dict[str, Any]]


FORMATS: Final = {
    "/v1/messages": Format(
        anthropic_messages.read,
        anthropic_messages.whole,
        anthropic_messages.events,
        anthropic_messages.broken,
        anthropic_messages.error,
    ),
    "/v1/chat/completions": Format(
        openai_chat.read, openai_chat.whole, openai_chat.events, openai_chat.broken, openai_chat.error
    ),
    "/v1/responses": Format(
        openai_responses.read,
        openai_responses.whole,
        openai_responses.events,
        openai_responses.broken,
        openai_responses.error,
    ),
}


def input_tokens(body: Mapping[str, Any]) -> int:
    """For count_tokens. Raises BadRequest."""
    return anthropic_messages.read(body, counting=True).input_tokens


def error(status: int, message: str, anthropic: bool) -> dict[str, Any]:
    return (anthropic_messages.error if anthropic else openai_chat.error)(status, message)


def models(name: str, anthropic: bool) -> dict[str, Any]:
    """The model of this name, which is always there; "" = the list."""
    named = name or MODEL
    one: dict[str, Any] = {"id": named, "object": "model", "created": CREATED_AT, "owned_by": "scripted"}
    listed: dict[str, Any] = {"object": "list", "data": [one]}
    if anthropic:
        created = "2025-06-15T15:06:40Z"  # CREATED_AT
        one = {"type": "model", "id": named, "display_name": named, "created_at": created}
        listed = {"data": [one], "has_more": False, "first_id": named, "last_id": named}
    return one if name else listed
