"""OpenAI's `/v1/chat/completions`, and whoever else speaks it (vLLM, Ollama, …). Knows no HTTP.

Source: platform.openai.com/docs/api-reference/chat. Servers differ: some send no call ids, no `[DONE]`, no usage, an
index that does not count; their thoughts come as `reasoning_content` or `reasoning`. All of that is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent_harness.providers.shape import NOTHING, Answer, Asking, Block, Item, Piece, ProviderError

_STOPS = {"stop": "end", "tool_calls": "calls", "function_call": "calls", "length": "length"}


class Chat:
    """The dialect."""

    url_variable = "OPENAI_BASE_URL"
    key_variable = "OPENAI_API_KEY"
    default_url = "https://api.openai.com/v1"
    path = "/chat/completions"

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    def body(self, asking: Asking) -> dict[str, Any]:
        said: dict[str, Any] = {
            "model": asking.model,
            "messages": [{"role": "system", "content": asking.system}, *map(_message, asking.items)],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if asking.tools:
            said["tools"] = [
                {
                    "type": "function",
                    "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
                }
                for tool in asking.tools
            ]
        if asking.output_tokens:
            said["max_completion_tokens"] = asking.output_tokens
        return said

    def reader(self) -> ChatReader:
        return ChatReader()


def _message(item: Item) -> dict[str, Any]:
    if item["role"] == "user":
        return {"role": "user", "content": item["text"]}
    if item["role"] == "tool":
        return {"role": "tool", "tool_call_id": item["id"], "content": item["text"] or NOTHING}
    blocks: list[Block] = item["blocks"]
    said: dict[str, Any] = {"role": "assistant"}
    said["content"] = "".join(block["text"] for block in blocks if block["kind"] == "text") or None
    calls = [
        {
            "id": block["id"],
            "type": "function",
            "function": {"name": block["name"], "arguments": block["arguments"] or "{}"},
        }
        for block in blocks
        if block["kind"] == "call"
    ]
    if calls:
        said["tool_calls"] = calls
    elif not said["content"]:
        said["content"] = NOTHING
    return said


class ChatReader:
    """Of one stream."""

    def __init__(self) -> None:
        self.answer = Answer()
        self._calls: dict[int, Block] = {}

    def feed(self, event: Mapping[str, Any]) -> list[Piece]:
        if error := event.get("error"):
            told = error if isinstance(error, dict) else {"message": error}
            raise ProviderError(str(told.get("message") or told), again=told.get("code") not in (400, 401, 403, 404))
        if usage := event.get("usage"):
            cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
            self.answer.usage = {
                "input": int(usage.get("prompt_tokens") or 0) - cached,
                "output": int(usage.get("completion_tokens") or 0),
                "cache_read": cached,
            }
        pieces: list[Piece] = []
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            pieces += self._grow("thought", delta.get("reasoning_content") or delta.get("reasoning") or "")
            pieces += self._grow("text", delta.get("content") or delta.get("refusal") or "")
            for call in delta.get("tool_calls") or []:
                self._call(call)
            if reason := choice.get("finish_reason"):
                self.answer.stop = "refusal" if reason == "content_filter" else _STOPS.get(reason, "end")
                self.answer.whole = True  # usage may follow; `[DONE]` need not
        return pieces

    def _grow(self, kind: str, text: Any) -> list[Piece]:
        if not isinstance(text, str) or not text:
            return []
        blocks = self.answer.blocks
        if blocks and blocks[-1]["kind"] == kind:
            blocks[-1]["text"] += text
        else:
            blocks.append({"kind": kind, "text": text})
        return [Piece(kind, text)]

    def _call(self, said: Mapping[str, Any]) -> None:
        function = said.get("function") or {}
        index = said.get("index")
        index = len(self._calls) if index is None else int(index)
        known = self._calls.get(index)
        if known is not None and said.get("id") and known["id"] and said["id"] != known["id"]:
            index, known = max(self._calls) + 1, None  # another call under the same index
        if known is None:
            known = {"kind": "call", "id": said.get("id") or "", "name": "", "arguments": ""}
            self._calls[index] = known
            self.answer.blocks.append(known)
        known["name"] = known["name"] or function.get("name") or ""
        known["arguments"] += function.get("arguments") or ""


CHAT = Chat()
