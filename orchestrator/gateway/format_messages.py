"""Anthropic's messages: how its streams are read, put together and taken apart. Pure.

Source: Anthropic's API reference, "Streaming messages". A stream is `message_start`, blocks of `content_block_start`,
`…_delta`, `…_stop`, then `message_delta` and the mark, `message_stop`; `ping` and `error` anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from orchestrator.calls import ModelUsage
from orchestrator.gateway.format_port import Seen, Text, count, dump, load, part, parts
from orchestrator.gateway.sse import SseEvent, written

#: Source: Anthropic's API reference, "Errors".
_STATUS: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_DELTA_FRAME_BYTES: Final = 70  # of a delta's JSON around its text
#: What a block says in deltas: the block's field, and the delta's type and field for it.
_IN_DELTAS: Final = {
    "text": (("text", "text_delta", "text"),),
    "thinking": (("thinking", "thinking_delta", "thinking"), ("signature", "signature_delta", "signature")),
}


class MessagesReading:
    def __init__(self) -> None:
        self.usage: ModelUsage | None = None
        self.output_bytes = 0
        self.failed = False
        self._told: dict[str, Any] = {}

    def see(self, event: SseEvent) -> Seen:
        # Most events are deltas: those are not parsed.
        match event.name or load(event.data).get("type"):
            case "content_block_delta":
                self.output_bytes += max(1, len(event.data) - _DELTA_FRAME_BYTES)
            case "message_start":
                self._tell(part(load(event.data).get("message")))
            case "message_delta":
                self._tell(load(event.data))
            case "message_stop":
                return Seen.LAST
            case "error":
                return Seen.ERROR
        return Seen.PART

    def _tell(self, said: dict[str, Any]) -> None:
        # The delta's figures are running totals, and may leave out what the start said.
        self._told |= {name: value for name, value in part(said.get("usage")).items() if value is not None}
        if self._told:
            self.usage = _usage(self._told)


class MessagesFormat:
    def reading(self) -> MessagesReading:
        return MessagesReading()

    def status(self, event: SseEvent) -> int:
        return _STATUS.get(str(part(load(event.data).get("error")).get("type")), 500)

    def usage(self, body: dict[str, Any]) -> ModelUsage | None:
        told = part(body.get("usage"))
        return _usage(told) if told else None

    def is_answer(self, body: dict[str, Any]) -> bool:
        return body.get("type", "message") == "message" and isinstance(body.get("content"), list)

    def assembled(self, events: Sequence[SseEvent]) -> dict[str, Any]:
        message: dict[str, Any] | None = None
        blocks: dict[int, dict[str, Any]] = {}
        arguments: dict[int, Text] = {}
        for event in events:
            said = load(event.data)
            index = count(said.get("index"))
            match said.get("type"):
                case "message_start":
                    message = dict(part(said.get("message")))
                case "content_block_start":
                    blocks[index] = dict(part(said.get("content_block")))
                case "content_block_delta" if index in blocks:
                    _add(blocks[index], part(said.get("delta")), arguments, index)
                case "message_delta" if message is not None:
                    message |= part(said.get("delta"))
                    told = {name: value for name, value in part(said.get("usage")).items() if value is not None}
                    message["usage"] = {**part(message.get("usage")), **told}
                    message |= {name: said[name] for name in said if name not in ("type", "delta", "usage")}
        if message is None:
            raise ValueError("a stream of messages without message_start")
        for index, text in arguments.items():
            blocks[index]["input"] = load(str(text).encode())
        message["content"] = [
            {name: str(value) if isinstance(value, Text) else value for name, value in blocks[index].items()}
            for index in sorted(blocks)
        ]
        return message

    def streamed(self, body: dict[str, Any]) -> list[bytes]:
        if not self.is_answer(body):
            raise ValueError("not a message")
        return [written(dump(said), str(said["type"])) for said in _stream(body)]


def _usage(told: dict[str, Any]) -> ModelUsage:
    return ModelUsage(
        input_tokens=count(told.get("input_tokens")),
        output_tokens=count(told.get("output_tokens")),
        cache_read_tokens=count(told.get("cache_read_input_tokens")),
        cache_write_tokens=count(told.get("cache_creation_input_tokens")),
    )


def _add(block: dict[str, Any], delta: dict[str, Any], arguments: dict[int, Text], index: int) -> None:
    match delta.get("type"):
        case "input_json_delta":
            arguments.setdefault(index, Text()).pieces.append(str(delta.get("partial_json", "")))
        case "citations_delta":
            block["citations"] = [*parts(block.get("citations")), delta.get("citation")]
        case _:  # text, thinking, signature, and what comes after them: text that is added to a field of that name
            for name, value in delta.items():
                if name != "type" and isinstance(value, str):
                    if not isinstance(block.get(name), Text):
                        block[name] = Text(str(block.get(name) or ""))
                    block[name].pieces.append(value)
                elif name != "type":
                    block[name] = value


def _stream(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    told = part(body.get("usage"))
    late = ("content", "stop_reason", "stop_sequence")
    start = {**body, "content": [], "stop_reason": None, "stop_sequence": None, "usage": {**told, "output_tokens": 0}}
    yield {"type": "message_start", "message": start}
    for index, block in enumerate(parts(body.get("content"))):
        said: list[dict[str, Any]] = []
        empty = dict(block)
        if isinstance(block.get("input"), dict):
            empty["input"] = {}
            said.append({"type": "input_json_delta", "partial_json": dump(block["input"]).decode()})
        for field, kind, name in _IN_DELTAS.get(str(block.get("type")), ()):
            if isinstance(block.get(field), str):
                empty[field] = ""
                said.append({"type": kind, name: block[field]})
        if citations := parts(block.get("citations")):
            empty["citations"] = []
            said += [{"type": "citations_delta", "citation": one} for one in citations]
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in said:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    yield {"type": "message_delta", "delta": {name: body.get(name) for name in late[1:]}, "usage": told}
    yield {"type": "message_stop"}
