"""Anthropic's `/v1/messages`: the conversation as its request, its stream as blocks. Knows no HTTP.

Source: docs.claude.com, "Messages", "Streaming messages", "Prompt caching". The end of the system prompt and the end of
the conversation are marked for its cache: each request reads what the one before has written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from agent_harness.providers.shape import NOTHING, Answer, Asking, Block, Item, Piece, ProviderError, in_turns

OUTPUT_TOKENS = 16_000  # where none is said: max_tokens is required, and what is reserved of a budget goes by it
_CACHED = {"type": "ephemeral"}
_STOPS = {"end_turn": "end", "stop_sequence": "end", "tool_use": "calls", "max_tokens": "length", "refusal": "refusal"}
_AGAIN = {"overloaded_error", "api_error", "rate_limit_error", "timeout_error"}


class Messages:
    """The dialect."""

    url_variable = "ANTHROPIC_BASE_URL"
    key_variable = "ANTHROPIC_API_KEY"
    default_url = "https://api.anthropic.com"
    path = "/v1/messages"

    def headers(self, key: str) -> dict[str, str]:
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}

    def body(self, asking: Asking) -> dict[str, Any]:
        turns: list[dict[str, Any]] = []
        for turn in in_turns(asking.items):
            role = "assistant" if turn[0]["role"] == "assistant" else "user"
            turns.append({"role": role, "content": [part for item in turn for part in _content(item)]})
        turns[-1]["content"][-1] = {**turns[-1]["content"][-1], "cache_control": _CACHED}
        said: dict[str, Any] = {
            "model": asking.model,
            "max_tokens": asking.output_tokens or OUTPUT_TOKENS,
            "system": [{"type": "text", "text": asking.system, "cache_control": _CACHED}],
            "messages": turns,
            "stream": True,
        }
        if asking.tools:
            said["tools"] = [
                {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
                for tool in asking.tools
            ]
        if asking.thinking_tokens:
            said["thinking"] = {"type": "enabled", "budget_tokens": asking.thinking_tokens}
            said["max_tokens"] += asking.thinking_tokens
        return said

    def reader(self) -> MessagesReader:
        return MessagesReader()


def _content(item: Item) -> list[dict[str, Any]]:
    if item["role"] == "user":
        return [{"type": "text", "text": item["text"]}]
    if item["role"] == "tool":
        result = {"type": "tool_result", "tool_use_id": item["id"], "content": item["text"] or NOTHING}
        return [result if item["ok"] else {**result, "is_error": True}]
    said = [part for block in item["blocks"] if (part := _block(block)) is not None]
    return said or [{"type": "text", "text": NOTHING}]


def _block(block: Block) -> dict[str, Any] | None:
    if block["kind"] == "call":
        return {"type": "tool_use", "id": block["id"], "name": block["name"], "input": _object(block["arguments"])}
    if block["kind"] == "thought":
        return dict(block["opaque"]) if block.get("opaque") else None  # unsigned, it would be refused
    return {"type": "text", "text": block["text"]} if block["text"].strip() else None


def _object(arguments: str) -> dict[str, Any]:
    """What was no JSON object goes back as it was written, in one; its result says what was wrong with it."""
    try:
        found = json.loads(arguments or "{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"malformed": arguments}


class MessagesReader:
    """Of one stream."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._blocks: dict[int, Block] = {}

    def feed(self, event: Mapping[str, Any]) -> list[Piece]:
        kind = event["type"]
        if kind == "message_start":
            self._count(event["message"].get("usage") or {})
        elif kind == "content_block_start":
            return self._start(event["index"], event["content_block"])
        elif kind == "content_block_delta":
            return self._delta(self._blocks[event["index"]], event["delta"])
        elif kind == "message_delta":
            self._count(event.get("usage") or {})
            if reason := event["delta"].get("stop_reason"):
                self.answer.stop = _STOPS.get(reason, "end")
        elif kind == "message_stop":
            self.answer.whole = True
        elif kind == "error":
            error = event.get("error") or {}
            raise ProviderError(str(error.get("message") or error), again=error.get("type") in _AGAIN)
        return []

    def _start(self, index: int, said: Mapping[str, Any]) -> list[Piece]:
        kind = said["type"]
        if kind == "text":
            block: Block = {"kind": "text", "text": said.get("text", "")}
        elif kind == "tool_use":
            given = json.dumps(said["input"]) if said.get("input") else ""
            block = {"kind": "call", "id": said["id"], "name": said["name"], "arguments": given}
        elif kind == "thinking":
            block = {"kind": "thought", "text": said.get("thinking", "")}
        else:  # redacted_thinking, and what is not known yet: it goes back as it came
            block = {"kind": "thought", "text": "", "opaque": dict(said)}
        self._blocks[index] = block
        self.answer.blocks.append(block)
        return [Piece(block["kind"], block["text"])] if block.get("text") else []

    def _delta(self, block: Block, delta: Mapping[str, Any]) -> list[Piece]:
        kind = delta["type"]
        if kind == "input_json_delta":
            block["arguments"] += delta["partial_json"]
        elif kind == "signature_delta":
            block["opaque"] = {"type": "thinking", "thinking": block["text"], "signature": delta["signature"]}
        elif kind in ("text_delta", "thinking_delta"):
            text = delta["text"] if kind == "text_delta" else delta["thinking"]
            block["text"] += text
            return [Piece(block["kind"], text)] if text else []
        return []

    def _count(self, usage: Mapping[str, Any]) -> None:
        names = {
            "input": "input_tokens",
            "output": "output_tokens",
            "cache_read": "cache_read_input_tokens",
            "cache_write": "cache_creation_input_tokens",
        }
        for ours, theirs in names.items():
            if usage.get(theirs) is not None:
                self.answer.usage[ours] = int(usage[theirs])


MESSAGES = Messages()
