"""Anthropic's `POST /v1/messages`: read, answered whole, streamed. Knows no script and no HTTP.

Source: docs.claude.com, "Messages" and "Streaming messages": message_start, then for each content block
content_block_start, deltas, content_block_stop; message_delta with the stop reason and the output's tokens;
message_stop.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from scripted_model.answer import Answer
from scripted_model.asked import Asked, BadRequest, Said, Tool, limit_of, listed, model_of, text_of, tokens

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def read(body: Mapping[str, Any], *, counting: bool = False) -> Asked:
    """Raises BadRequest. `counting`: for count_tokens, which needs no max_tokens."""
    limit = limit_of(body, "max_tokens")
    if limit is None and not counting:
        raise BadRequest("max_tokens: Field required")
    thinking = body.get("thinking")
    return Asked(
        model=model_of(body),
        system=text_of(body.get("system")),
        said=tuple(_said(body)),
        tools=tuple(
            Tool(str(one.get("name", "")), _kind(one), one.get("input_schema") or {}) for one in listed(body, "tools")
        ),
        stream=body.get("stream") is True,
        thoughts=isinstance(thinking, dict) and thinking.get("type") != "disabled",
        usage_chunk=False,
        output_limit_tokens=limit,
        input_tokens=tokens(body.get("system"), body.get("messages"), body.get("tools")),
        body=body,
    )


def _kind(tool: Mapping[str, Any]) -> str:
    kind = tool.get("type") or "custom"
    return "function" if kind == "custom" else str(kind)  # what Anthropic calls custom is everybody's function


def _said(body: Mapping[str, Any]) -> Iterator[Said]:
    messages = listed(body, "messages")
    if not messages:
        raise BadRequest("messages: at least one message is required")
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise BadRequest(f"messages.{number}.role: must be user or assistant")
        if isinstance(content, str) or role == "assistant":
            yield Said("assistant" if role == "assistant" else "user", text_of(content))
            continue
        for block in content if isinstance(content, list) else []:
            result = isinstance(block, dict) and block.get("type") == "tool_result"
            yield Said("tool" if result else "user", text_of(block))


def blocks(answer: Answer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if answer.thought:
        found.append({"type": "thinking", "thinking": answer.thought, "signature": answer.id("sig_")})
    if answer.text:
        found.append({"type": "text", "text": answer.text})
    for number, call in enumerate(answer.calls):
        given = {"input": call.arguments} if isinstance(call.arguments, str) else dict(call.arguments)
        found.append({"type": "tool_use", "id": answer.id("toolu_", number), "name": call.name, "input": given})
    return found


def stop_reason(answer: Answer) -> str:
    return "max_tokens" if answer.cut_short else "tool_use" if answer.calls else "end_turn"


def _message(asked: Asked, answer: Answer, output_tokens: int) -> dict[str, Any]:
    return {
        "id": answer.id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": answer.usage.input_tokens,
            "cache_creation_input_tokens": answer.usage.cache_write_tokens,
            "cache_read_input_tokens": answer.usage.cache_read_tokens,
            "output_tokens": output_tokens,
            "service_tier": "standard",
        },
    }


def whole(asked: Asked, answer: Answer) -> dict[str, Any]:
    message = _message(asked, answer, answer.usage.output_tokens)
    return {**message, "content": blocks(answer), "stop_reason": stop_reason(answer)}


def events(asked: Asked, answer: Answer) -> Iterator[bytes]:
    """The stream, an event a piece."""
    yield _event({"type": "message_start", "message": _message(asked, answer, 1)})
    for index, block in enumerate(blocks(answer)):
        empty, deltas = _parts(block, answer)
        yield _event({"type": "content_block_start", "index": index, "content_block": empty})
        if index == 0:
            yield _event({"type": "ping"})
        for delta in deltas:
            yield _event({"type": "content_block_delta", "index": index, "delta": delta})
        yield _event({"type": "content_block_stop", "index": index})
    yield _event(
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason(answer), "stop_sequence": None},
            "usage": {"output_tokens": answer.usage.output_tokens},
        }
    )
    yield _event({"type": "message_stop"})


def _parts(block: dict[str, Any], answer: Answer) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """A block as it starts, and its deltas."""
    if block["type"] == "thinking":

        def thinking() -> Iterator[dict[str, Any]]:
            yield from ({"type": "thinking_delta", "thinking": one} for one in answer.pieces(block["thinking"]))
            yield {"type": "signature_delta", "signature": block["signature"]}

        return {**block, "thinking": "", "signature": ""}, thinking()
    if block["type"] == "text":
        return {**block, "text": ""}, ({"type": "text_delta", "text": one} for one in answer.pieces(block["text"]))
    arguments = json.dumps(block["input"], ensure_ascii=False)
    return {**block, "input": {}}, (
        {"type": "input_json_delta", "partial_json": one} for one in ("", *answer.pieces(arguments))
    )


def _event(data: Mapping[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def broken(asked: Asked, answer: Answer) -> bytes:
    """How the provider says in a stream that it failed."""
    return _event(error(529, "Overloaded"))


def error(status: int, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": ERROR_TYPES.get(status, "api_error"), "message": message}}
