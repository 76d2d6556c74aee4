"""OpenAI's `/v1/responses`, without state at the provider's side (`store: false`). Knows no HTTP.

Source: platform.openai.com/docs/api-reference/responses and …/responses-streaming. An answer's items come whole in
`response.output_item.done`; the deltas before are for people. Reasoning goes back encrypted, where the model has any.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from agent_harness.providers.shape import NOTHING, Answer, Asking, Block, Item, Piece, ProviderError

_REASONS = re.compile(r"^(o\d|gpt-5|codex|computer-use)")  # others refuse `include`
_AGAIN = {"server_error", "rate_limit_exceeded", "vector_store_timeout"}


class Responses:
    """The dialect."""

    url_variable = "OPENAI_BASE_URL"
    key_variable = "OPENAI_API_KEY"
    default_url = "https://api.openai.com/v1"
    path = "/responses"

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    def body(self, asking: Asking) -> dict[str, Any]:
        said: dict[str, Any] = {
            "model": asking.model,
            "instructions": asking.system,
            "input": [part for item in asking.items for part in _input(item)],
            "store": False,
            "stream": True,
        }
        if asking.tools:
            said["tools"] = [
                {
                    "type": "function",
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                    "strict": False,
                }
                for tool in asking.tools
            ]
        if _REASONS.match(asking.model):
            said["include"] = ["reasoning.encrypted_content"]
            said["reasoning"] = {"summary": "auto"}
        if asking.output_tokens:
            said["max_output_tokens"] = asking.output_tokens
        return said

    def reader(self) -> ResponsesReader:
        return ResponsesReader()


def _input(item: Item) -> list[dict[str, Any]]:
    if item["role"] == "user":
        return [{"role": "user", "content": [{"type": "input_text", "text": item["text"]}]}]
    if item["role"] == "tool":
        return [{"type": "function_call_output", "call_id": item["id"], "output": item["text"] or NOTHING}]
    said = [part for block in item["blocks"] if (part := _part(block)) is not None]
    # Reasoning without what it led to is refused.
    return said if any(part.get("type") != "reasoning" for part in said) else [*said, _text(NOTHING)]


def _part(block: Block) -> dict[str, Any] | None:
    if block["kind"] == "call":
        return {
            "type": "function_call",
            "call_id": block["id"],
            "name": block["name"],
            "arguments": block["arguments"] or "{}",
        }
    if block["kind"] == "thought":
        return dict(block["opaque"]) if block.get("opaque") else None
    return _text(block["text"]) if block["text"].strip() else None


def _text(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "output_text", "text": text}]}


class ResponsesReader:
    """Of one stream."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._at: dict[int, Block] = {}  # by output_index

    def feed(self, event: Mapping[str, Any]) -> list[Piece]:
        kind = event["type"]
        if kind in ("response.output_text.delta", "response.refusal.delta"):
            return self._grow(event["output_index"], "text", event["delta"])
        if kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta"):
            return self._grow(event["output_index"], "thought", event["delta"])
        if kind == "response.reasoning_summary_part.added" and event.get("summary_index"):
            return self._grow(event["output_index"], "thought", "\n\n")
        if kind == "response.output_item.done":
            return self._done(event["output_index"], event["item"])
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self._end(event["response"])
        elif kind == "error":
            told = event.get("error") or event
            raise ProviderError(str(told.get("message") or told), again=told.get("code") in _AGAIN)
        return []

    def _block(self, index: int, kind: str) -> Block:
        if index not in self._at:
            self._at[index] = {"kind": kind, "text": ""}
            self.answer.blocks.append(self._at[index])
        return self._at[index]

    def _grow(self, index: int, kind: str, text: str) -> list[Piece]:
        self._block(index, kind)["text"] += text
        return [Piece(kind, text)] if text else []

    def _done(self, index: int, item: Mapping[str, Any]) -> list[Piece]:
        kind = item["type"]
        if kind == "function_call":
            call = {"kind": "call", "id": item["call_id"], "name": item["name"], "arguments": item["arguments"]}
            self.answer.blocks.append(call)
        elif kind == "reasoning":
            block = self._block(index, "thought")
            if item.get("encrypted_content"):
                # Without its id: with `store: false` the provider has kept nothing under it.
                block["opaque"] = {
                    "type": "reasoning",
                    "summary": item.get("summary") or [],
                    "encrypted_content": item["encrypted_content"],
                }
        elif kind == "message":
            whole = "".join(part.get("text") or part.get("refusal") or "" for part in item.get("content") or [])
            block = self._block(index, "text")
            missing = whole[len(block["text"]) :] if whole.startswith(block["text"]) else ""
            block["text"] = whole
            return [Piece("text", missing)] if missing else []
        return []

    def _end(self, response: Mapping[str, Any]) -> None:
        if usage := response.get("usage"):
            cached = int((usage.get("input_tokens_details") or {}).get("cached_tokens") or 0)
            self.answer.usage = {
                "input": int(usage.get("input_tokens") or 0) - cached,
                "output": int(usage.get("output_tokens") or 0),
                "cache_read": cached,
            }
        status = response.get("status")
        if status == "failed":
            error = response.get("error") or {}
            raise ProviderError(str(error.get("message") or error), again=error.get("code") in _AGAIN)
        if status == "incomplete":
            why = (response.get("incomplete_details") or {}).get("reason")
            self.answer.stop = "refusal" if why == "content_filter" else "length"
        else:
            called = any(block["kind"] == "call" for block in self.answer.blocks)
            self.answer.stop = "calls" if called else "end"
        self.answer.whole = True


RESPONSES = Responses()
