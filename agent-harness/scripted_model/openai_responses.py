"""OpenAI's `POST /v1/responses`: read, answered whole, streamed. Knows no script and no HTTP.

Source: OpenAI's API reference, "Responses" and "Streaming events": every event has its name, its type and a
sequence_number; output_item.added, parts and deltas, output_item.done for each item; response.completed (or
.incomplete) with the whole response ends it. Nothing is kept here, so `previous_response_id` is refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from scripted_model import openai_chat
from scripted_model.answer import CREATED_AT, Answer, arguments_text
from scripted_model.asked import Asked, BadRequest, Said, Tool, limit_of, listed, model_of, text_of, tokens
from scripted_model.script import Call

error = openai_chat.error
ASSISTANTS = {"reasoning", "function_call", "custom_tool_call", "local_shell_call", "shell_call"}


def read(body: Mapping[str, Any]) -> Asked:
    """Raises BadRequest."""
    if body.get("previous_response_id") or body.get("conversation"):
        raise BadRequest("previous_response_id, conversation: nothing is kept here; send the whole input")
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else listed(body, "input")
    if not items:
        raise BadRequest("input: must be a text or a list of items, with one at least")
    reasoning = body.get("reasoning")
    told = [text_of(one.get("content")) for one in items if one.get("role") in ("system", "developer")]
    return Asked(
        model=model_of(body),
        system="\n".join([text_of(body.get("instructions")), *told]),
        said=tuple(_said(items)),
        tools=tuple(_tools(listed(body, "tools"))),
        stream=body.get("stream") is True,
        thoughts=isinstance(reasoning, dict) and bool(reasoning.get("summary")),
        usage_chunk=False,
        output_limit_tokens=limit_of(body, "max_output_tokens"),
        input_tokens=tokens(body.get("instructions"), given, body.get("tools")),
        body=body,
    )


def _said(items: list[dict[str, Any]]) -> Iterator[Said]:
    for item in items:
        kind, role = str(item.get("type") or "message"), item.get("role")
        if kind in ASSISTANTS or role == "assistant":
            yield Said("assistant", text_of(item.get("content")))
        elif kind.endswith("_output"):
            yield Said("tool", text_of(item.get("output")))
        elif role == "user":
            yield Said("user", text_of(item.get("content")))


def _tools(content: list[dict[str, Any]]) -> Iterator[Tool]:
    for one in content:
        kind = str(one.get("type", "function"))
        if kind == "namespace":  # a group of functions
            yield from _tools(listed(one, "tools"))
        else:
            yield Tool(str(one.get("name") or kind), kind, one.get("parameters") or {})


def _call(asked: Asked, call: Call, answer: Answer, number: int) -> dict[str, Any]:
    kind = next((tool.kind for tool in asked.tools if tool.name == call.name), "function")
    call_id = answer.id("call_", number)
    ended = {"call_id": call_id, "status": "completed"}
    if kind == "custom":
        return {
            "id": answer.id("ctc_", number),
            "type": "custom_tool_call",
            **ended,
            "name": call.name,
            "input": arguments_text(call),
        }
    if kind in ("local_shell", "shell") and isinstance(call.arguments, Mapping):
        command = str(call.arguments.get("command", ""))
        if kind == "shell":
            action: dict[str, Any] = {"commands": [command], "timeout_ms": None, "max_output_length": None}
            return {"id": answer.id("sh_", number), "type": "shell_call", **ended, "action": action}
        action = {"type": "exec", "command": ["bash", "-lc", command], "env": {}}
        return {"id": answer.id("lsh_", number), "type": "local_shell_call", **ended, "action": action}
    return {
        "id": answer.id("fc_", number),
        "type": "function_call",
        **ended,
        "name": call.name,
        "arguments": arguments_text(call),
    }


def items(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if answer.thought:
        part = {"type": "summary_text", "text": answer.thought}
        item: dict[str, Any] = {"id": answer.id("rs_"), "type": "reasoning", "summary": [part]}
        if "reasoning.encrypted_content" in (asked.body.get("include") or []):
            item["encrypted_content"] = answer.id("enc_")
        found.append(item)
    if answer.text:
        text = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": []}
        status = "incomplete" if answer.cut_short else "completed"
        message = {"id": answer.id("msg_"), "type": "message", "status": status, "role": "assistant"}
        found.append({**message, "content": [text]})
    found += [_call(asked, call, answer, number) for number, call in enumerate(answer.calls)]
    return found


def _response(asked: Asked, answer: Answer, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    body, usage = asked.body, answer.usage
    reasoning = body.get("reasoning") or {}
    ended = status not in ("in_progress", "failed")
    return {
        "id": answer.id("resp_"),
        "object": "response",
        "created_at": CREATED_AT,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": None,
        "model": asked.model,
        "output": output,
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": None,
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_logprobs": 0,
        "top_p": body.get("top_p", 1.0),
        "truncation": body.get("truncation", "disabled"),
        "usage": {
            "input_tokens": usage.all_input,
            "input_tokens_details": {
                "cached_tokens": usage.cache_read_tokens,
                "cache_write_tokens": usage.cache_write_tokens,
            },
            "output_tokens": usage.output_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.thought_tokens},
            "total_tokens": usage.all_input + usage.output_tokens,
        }
        if ended
        else None,
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def _status(answer: Answer) -> str:
    return "incomplete" if answer.cut_short else "completed"


def whole(asked: Asked, answer: Answer) -> dict[str, Any]:
    return _response(asked, answer, _status(answer), items(asked, answer))


def events(asked: Asked, answer: Answer) -> Iterator[bytes]:
    """The stream, an event a piece."""
    numbers = itertools.count()

    def event(kind: str, **data: Any) -> bytes:
        return _event({"type": kind, "sequence_number": next(numbers), **data})

    began = _response(asked, answer, "in_progress", [])
    yield event("response.created", response=began)
    yield event("response.in_progress", response=began)
    output = items(asked, answer)
    for index, item in enumerate(output):
        place = {"item_id": item["id"], "output_index": index}
        yield event("response.output_item.added", output_index=index, item=_started(item))
        for kind, data in _inside(item, answer):
            yield event(kind, **place, **data)
        yield event("response.output_item.done", output_index=index, item=item)
    status = _status(answer)
    yield event(f"response.{status}", response=_response(asked, answer, status, output))


def _started(item: dict[str, Any]) -> dict[str, Any]:
    """An item as it is before its parts have come."""
    empty: dict[str, dict[str, Any]] = {
        "reasoning": {"summary": []},
        "message": {"content": [], "status": "in_progress"},
        "function_call": {"arguments": "", "status": "in_progress"},
        "custom_tool_call": {"input": "", "status": "in_progress"},
    }
    return {**item, **empty.get(item["type"], {"status": "in_progress"})}


def _inside(item: dict[str, Any], answer: Answer) -> Iterator[tuple[str, dict[str, Any]]]:
    """What comes between an item's start and its end."""
    if item["type"] == "reasoning":
        part, at = item["summary"][0], {"summary_index": 0}
        yield "response.reasoning_summary_part.added", {**at, "part": {**part, "text": ""}}
        for one in answer.pieces(part["text"]):
            yield "response.reasoning_summary_text.delta", {**at, "delta": one}
        yield "response.reasoning_summary_text.done", {**at, "text": part["text"]}
        yield "response.reasoning_summary_part.done", {**at, "part": part}
    elif item["type"] == "message":
        part, at = item["content"][0], {"content_index": 0}
        yield "response.content_part.added", {**at, "part": {**part, "text": ""}}
        for one in answer.pieces(part["text"]):
            yield "response.output_text.delta", {**at, "delta": one, "logprobs": []}
        yield "response.output_text.done", {**at, "text": part["text"], "logprobs": []}
        yield "response.content_part.done", {**at, "part": part}
    elif item["type"] == "function_call":
        for one in answer.pieces(item["arguments"]):
            yield "response.function_call_arguments.delta", {"delta": one}
        yield "response.function_call_arguments.done", {"name": item["name"], "arguments": item["arguments"]}
    elif item["type"] == "custom_tool_call":
        for one in answer.pieces(item["input"]):
            yield "response.custom_tool_call_input.delta", {"delta": one}
        yield "response.custom_tool_call_input.done", {"input": item["input"]}


def _event(data: Mapping[str, Any]) -> bytes:
    return f"event: {data['type']}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def broken(asked: Asked, answer: Answer) -> bytes:
    """How the provider says in a stream that it failed."""
    failure = {"code": "server_error", "message": "The server had an error while processing your request."}
    failed = {**_response(asked, answer, "failed", []), "error": failure}
    return _event({"type": "response.failed", "sequence_number": 0, "response": failed})
