"""OpenAI's chat completions, and of all servers compatible with them: how streams are read, put together and taken
apart. Pure.

Source: OpenAI's API reference, "chat completion chunk". Chunks without event names; the mark is `data: [DONE]`. Usage
comes in one more chunk without choices, if the request asked for it, which the gateway always does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from orchestrator.calls import ModelUsage
from orchestrator.gateway.format_port import Seen, Text, count, dump, load, part, parts
from orchestrator.gateway.sse import SseEvent, written

DONE: Final = b"[DONE]"
_CHUNK_FRAME_BYTES: Final = 200  # of a chunk's JSON around its text
_NOT_ADDED: Final = ("role", "index", "type", "id")  # fields of a delta that are told once, not in pieces


class ChatReading:
    def __init__(self) -> None:
        self.usage: ModelUsage | None = None
        self.output_bytes = 0
        self.failed = False

    def see(self, event: SseEvent) -> Seen:
        data = event.data
        if data.strip() == DONE:
            return Seen.LAST
        if not data:
            return Seen.PART
        self.output_bytes += max(1, len(data) - _CHUNK_FRAME_BYTES)
        # Within a JSON string the quotes would be escaped: these bytes are names.
        if b'"error"' in data or event.name == "error":
            said = load(data)
            if said.get("error") or event.name == "error":
                self.failed = True
                return Seen.ERROR
        if b'"usage"' in data and b'"usage":null' not in data:
            said = load(data)
            if told := part(said.get("usage")):
                self.usage = _usage(told)
                if not said.get("choices"):
                    return Seen.SPARE
        return Seen.PART


class ChatFormat:
    def reading(self) -> ChatReading:
        return ChatReading()

    def status(self, event: SseEvent) -> int:
        code = part(load(event.data).get("error")).get("code")
        return code if isinstance(code, int) and 400 <= code < 600 else 500

    def usage(self, body: dict[str, Any]) -> ModelUsage | None:
        told = part(body.get("usage"))
        return _usage(told) if told else None

    def is_answer(self, body: dict[str, Any]) -> bool:
        return not body.get("error") and isinstance(body.get("choices"), list)

    def assembled(self, events: Sequence[SseEvent]) -> dict[str, Any]:
        answer: dict[str, Any] = {}
        choices: dict[int, dict[str, Any]] = {}
        for event in events:
            said = load(event.data)
            for name, value in said.items():
                if name not in ("choices", "object", "usage", "obfuscation") and value is not None:
                    answer.setdefault(name, value)
            if told := said.get("usage"):
                answer["usage"] = told
            for one in parts(said.get("choices")):
                index = count(one.get("index"))
                _choose(choices.setdefault(index, {"index": index, "message": {}, "finish_reason": None}), one)
        if not choices and not answer:
            raise ValueError("a stream of chat completions without a chunk")
        answer["object"] = "chat.completion"
        answer["choices"] = [_closed(choices[index]) for index in sorted(choices)]
        return answer

    def streamed(self, body: dict[str, Any]) -> list[bytes]:
        if not self.is_answer(body):
            raise ValueError("not a chat completion")
        return [*(written(dump(said)) for said in _stream(body)), written(DONE)]


def _usage(told: dict[str, Any]) -> ModelUsage:
    details = part(told.get("prompt_tokens_details"))
    cached, kept = count(details.get("cached_tokens")), count(details.get("cache_write_tokens"))
    return ModelUsage(
        input_tokens=max(0, count(told.get("prompt_tokens")) - cached - kept),
        output_tokens=count(told.get("completion_tokens")),  # those spent on reasoning are among them
        cache_read_tokens=cached,
        cache_write_tokens=kept,
    )


def _choose(choice: dict[str, Any], said: dict[str, Any]) -> None:
    _add(choice["message"], part(said.get("delta")))
    for name, value in said.items():
        if name == "logprobs" and isinstance(value, dict):
            held = choice["logprobs"] = part(choice.get("logprobs"))
            for kind, listed in value.items():
                held[kind] = [*(held.get(kind) or []), *listed] if isinstance(listed, list) else held.get(kind)
        elif name not in ("delta", "index", "logprobs", "message") and (value is not None or name not in choice):
            choice[name] = value


def _add(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Text is added to text, calls by their index, what has another shape replaces."""
    for name, value in delta.items():
        held = message.get(name)
        if isinstance(value, str) and name not in _NOT_ADDED:
            if not isinstance(held, Text):
                message[name] = Text()
            message[name].pieces.append(value)
        elif isinstance(value, dict) and isinstance(held, dict):
            _add(held, value)
        elif isinstance(value, list) and any("index" in one for one in parts(value)):
            listed = message[name] = held if isinstance(held, list) else []
            for one in parts(value):
                place = next((there for there in listed if there.get("index") == one.get("index")), None)
                if place is None:
                    listed.append(place := {"index": one.get("index")})
                _add(place, {key: inner for key, inner in one.items() if key != "index"})
        elif isinstance(value, list) and isinstance(held, list):
            message[name] = [*held, *value]
        elif value is not None or name not in message:
            message[name] = value


def _closed(choice: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, **_settled(choice["message"])}
    for name, value in message.items():
        if isinstance(value, list) and any("index" in one for one in parts(value)):
            ordered = sorted(parts(value), key=lambda one: count(one.get("index")))
            message[name] = [{key: inner for key, inner in one.items() if key != "index"} for one in ordered]
    return {**choice, "message": message}


def _settled(value: Any) -> Any:
    """Texts joined, all the way down."""
    match value:
        case Text():
            return str(value)
        case dict():
            return {name: _settled(one) for name, one in value.items()}
        case list():
            return [_settled(one) for one in value]
    return value


def _stream(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    frame = {name: value for name, value in body.items() if name not in ("choices", "usage", "object")}
    frame["object"] = "chat.completion.chunk"
    for choice in parts(body.get("choices")):
        delta = {name: value for name, value in part(choice.get("message")).items() if value is not None}
        if isinstance(delta.get("tool_calls"), list):
            delta["tool_calls"] = [{"index": n, **one} for n, one in enumerate(parts(delta["tool_calls"]))]
        rest = {name: value for name, value in choice.items() if name not in ("message", "finish_reason")}
        yield {**frame, "choices": [{**rest, "delta": {"role": "assistant", **delta}, "finish_reason": None}]}
        end = {"index": choice.get("index", 0), "delta": {}, "finish_reason": choice.get("finish_reason") or "stop"}
        yield {**frame, "choices": [end]}
    if body.get("usage"):
        yield {**frame, "choices": [], "usage": body["usage"]}
