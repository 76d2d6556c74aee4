"""OpenAI's `POST /v1/chat/completions`: read, answered whole, streamed. Knows no script and no HTTP.

Source: OpenAI's API reference, "Chat completions" and its streaming object: `data:` lines of chat.completion.chunk, the
usage in a chunk without choices where include_usage asks for it, `data: [DONE]`. A thought goes out as
`reasoning_content`, which OpenAI has not and the compatible servers (vLLM, DeepSeek) do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from scripted_model.answer import CREATED_AT, Answer, arguments_text
from scripted_model.asked import Asked, BadRequest, Said, Tool, limit_of, listed, model_of, text_of, tokens

ERROR_TYPES = {
    401: "invalid_request_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_exceeded",
}
ERROR_CODES = {401: "invalid_api_key", 404: "not_found", 429: "rate_limit_exceeded"}


def read(body: Mapping[str, Any]) -> Asked:
    """Raises BadRequest."""
    messages = listed(body, "messages")
    if not messages:
        raise BadRequest("messages: at least one message is required")
    options = body.get("stream_options")
    return Asked(
        model=model_of(body),
        system="\n".join(text_of(m.get("content")) for m in messages if m.get("role") in ("system", "developer")),
        said=tuple(_said(messages)),
        tools=tuple(_tool(one) for one in listed(body, "tools")),
        stream=body.get("stream") is True,
        thoughts=True,
        usage_chunk=isinstance(options, dict) and options.get("include_usage") is True,
        output_limit_tokens=limit_of(body, "max_completion_tokens", "max_tokens"),
        input_tokens=tokens(messages, body.get("tools")),
        body=body,
    )


def _said(messages: list[dict[str, Any]]) -> Iterator[Said]:
    for number, message in enumerate(messages):
        role = message.get("role")
        if role in ("user", "assistant", "tool", "function"):
            yield Said("tool" if role == "function" else role, text_of(message.get("content")))
        elif role not in ("system", "developer"):
            raise BadRequest(f"messages[{number}].role: must be system, developer, user, assistant or tool")


def _tool(content: Mapping[str, Any]) -> Tool:
    kind = str(content.get("type", "function"))
    one = content.get(kind)
    one = one if isinstance(one, dict) else {}
    return Tool(str(one.get("name", "")), kind, one.get("parameters") or {})


def _calls(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
    free_text = {tool.name for tool in asked.tools if tool.kind == "custom"}
    found: list[dict[str, Any]] = []
    for number, call in enumerate(answer.calls):
        if call.name in free_text:
            body = {"type": "custom", "custom": {"name": call.name, "input": arguments_text(call)}}
        else:
            body = {"type": "function", "function": {"name": call.name, "arguments": arguments_text(call)}}
        found.append({"id": answer.id("call_", number), **body})
    return found


def finish_reason(answer: Answer) -> str:
    return "length" if answer.cut_short else "tool_calls" if answer.calls else "stop"


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "prompt_tokens": usage.all_input,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.all_input + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.thought_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _frame(asked: Asked, answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": answer.id("chatcmpl-"),
        "object": kind,
        "created": CREATED_AT,
        "model": asked.model,
        "service_tier": "default",
        "system_fingerprint": "fp_scripted",
    }


def whole(asked: Asked, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None, "annotations": []}
    if answer.thought:
        message["reasoning_content"] = answer.thought
    if answer.calls:
        message["tool_calls"] = _calls(asked, answer)
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(answer)}
    return {**_frame(asked, answer, "chat.completion"), "choices": [choice], "usage": _usage(answer)}


def events(asked: Asked, answer: Answer) -> Iterator[bytes]:
    """The stream, an event a piece."""
    frame = _frame(asked, answer, "chat.completion.chunk")
    rest = {"usage": None} if asked.usage_chunk else {}

    def chunk(delta: Mapping[str, Any], ending: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ending}
        return _event({**frame, "choices": [choice], **rest})

    yield chunk({"role": "assistant", "content": None if answer.calls and not answer.text else "", "refusal": None})
    for one in answer.pieces(answer.thought):
        yield chunk({"reasoning_content": one})
    for one in answer.pieces(answer.text):
        yield chunk({"content": one})
    for index, call in enumerate(_calls(asked, answer)):
        kind = call["type"]
        name = "arguments" if kind == "function" else "input"
        yield chunk({"tool_calls": [{"index": index, **call, kind: {**call[kind], name: ""}}]})
        for one in answer.pieces(call[kind][name]):
            yield chunk({"tool_calls": [{"index": index, kind: {name: one}}]})
    yield chunk({}, finish_reason(answer))
    if asked.usage_chunk:
        yield _event({**frame, "choices": [], "usage": _usage(answer)})
    yield b"data: [DONE]\n\n"


def _event(data: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def broken(asked: Asked, answer: Answer) -> bytes:
    """How the provider says in a stream that it failed."""
    return _event(error(500, "The server had an error while processing your request."))


def error(status: int, message: str) -> dict[str, Any]:
    kind = ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": ERROR_CODES.get(status)}}
