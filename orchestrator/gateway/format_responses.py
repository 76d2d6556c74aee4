"""OpenAI's responses: how their streams are read, put together and taken apart. Pure.

Source: OpenAI's API reference, "Responses, streaming events". Every event is named, and numbered; the last one carries
the whole response: `response.completed`, `response.incomplete`, or `response.failed`, which is whole and no answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from orchestrator.calls import ModelUsage
from orchestrator.gateway.format_port import Seen, count, dump, load, part, parts
from orchestrator.gateway.sse import SseEvent, written

_ENDS: Final = {"response.completed": "completed", "response.incomplete": "incomplete", "response.failed": "failed"}
_DELTA_FRAME_BYTES: Final = 170  # of a delta's JSON around its text


class ResponsesReading:
    def __init__(self) -> None:
        self.usage: ModelUsage | None = None
        self.output_bytes = 0
        self.failed = False

    def see(self, event: SseEvent) -> Seen:
        name = event.name or str(load(event.data).get("type", ""))
        if name in _ENDS:
            response = part(load(event.data).get("response"))
            if told := part(response.get("usage")):
                self.usage = _usage(told)
            self.failed = name == "response.failed"
            return Seen.LAST
        if name.endswith(".delta"):
            self.output_bytes += max(1, len(event.data) - _DELTA_FRAME_BYTES)
        return Seen.ERROR if name == "error" else Seen.PART


class ResponsesFormat:
    def reading(self) -> ResponsesReading:
        return ResponsesReading()

    def status(self, event: SseEvent) -> int:
        return 0  # an event's error has another shape than an answer's

    def usage(self, body: dict[str, Any]) -> ModelUsage | None:
        told = part(body.get("usage"))
        return _usage(told) if told else None

    def is_answer(self, body: dict[str, Any]) -> bool:
        return isinstance(body.get("output"), list) and body.get("status", "completed") in ("completed", "incomplete")

    def assembled(self, events: Sequence[SseEvent]) -> dict[str, Any]:
        items: dict[int, dict[str, Any]] = {}
        for event in events:
            said = load(event.data)
            if said.get("type") == "response.output_item.done":
                items[count(said.get("output_index"))] = part(said.get("item"))
            if said.get("type") in _ENDS:
                response = dict(part(said.get("response")))
                # Some servers leave the output out of the last event, since it was told before.
                response["output"] = response.get("output") or [items[index] for index in sorted(items)]
                return response
        raise ValueError("a stream of a response without its last event")

    def streamed(self, body: dict[str, Any]) -> list[bytes]:
        if not self.is_answer(body):
            raise ValueError("not a response")
        return [
            written(dump({**said, "sequence_number": number}), str(said["type"]))
            for number, said in enumerate(_stream(body))
        ]


def _usage(told: dict[str, Any]) -> ModelUsage:
    details = part(told.get("input_tokens_details"))
    cached, kept = count(details.get("cached_tokens")), count(details.get("cache_write_tokens"))
    return ModelUsage(
        input_tokens=max(0, count(told.get("input_tokens")) - cached - kept),
        output_tokens=count(told.get("output_tokens")),  # those spent on reasoning are among them
        cache_read_tokens=cached,
        cache_write_tokens=kept,
    )


def _stream(body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    begun = {**body, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(parts(body.get("output"))):
        yield from _item(index, item)
    status = body.get("status", "completed")
    yield {"type": f"response.{status}", "response": body}


def _item(index: int, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    at = {"output_index": index}
    named = {**at, "item_id": item.get("id", "")}
    bare: dict[str, Any] = {**item, "status": "in_progress"} if "status" in item else dict(item)
    said: list[dict[str, Any]] = []
    match item.get("type"):
        case "message":
            bare["content"] = []
            for place, content in enumerate(parts(item.get("content"))):
                said += _content({**named, "content_index": place}, content)
        case "reasoning":
            bare["summary"] = []
            for place, summary in enumerate(parts(item.get("summary"))):
                said += _summary({**named, "summary_index": place}, summary)
            for place, content in enumerate(parts(item.get("content"))):
                bare["content"] = []
                spot = {**named, "content_index": place}
                said += _told("response.reasoning_text", spot, "text", content.get("text", ""))
        case "function_call" | "mcp_call":
            bare["arguments"] = ""
            extra = {"name": item.get("name", "")} if item["type"] == "function_call" else {}
            said += _told(f"response.{item['type']}_arguments", named, "arguments", item.get("arguments", ""), **extra)
        case "custom_tool_call":
            bare["input"] = ""
            said += _told("response.custom_tool_call_input", named, "input", item.get("input", ""))
    yield {"type": "response.output_item.added", **at, "item": bare}
    yield from said
    yield {"type": "response.output_item.done", **at, "item": item}


def _told(event: str, spot: dict[str, Any], field: str, text: object, **extra: object) -> list[dict[str, Any]]:
    """A text in one delta, and that it is whole."""
    return [
        {"type": f"{event}.delta", **spot, "delta": str(text)},
        {"type": f"{event}.done", **spot, field: str(text), **extra},
    ]


def _content(spot: dict[str, Any], content: dict[str, Any]) -> list[dict[str, Any]]:
    kind, field = ("refusal", "refusal") if content.get("type") == "refusal" else ("output_text", "text")
    empty = {**content, field: ""} | ({"annotations": []} if "annotations" in content else {})
    logprobs = {"logprobs": content.get("logprobs") or []} if kind == "output_text" else {}
    delta, done = _told(f"response.{kind}", spot, field, content.get(field, ""))
    notes = [
        {"type": "response.output_text.annotation.added", **spot, "annotation_index": n, "annotation": note}
        for n, note in enumerate(parts(content.get("annotations")))
    ]
    return [
        {"type": "response.content_part.added", **spot, "part": empty},
        delta | logprobs,
        *notes,
        done | logprobs,
        {"type": "response.content_part.done", **spot, "part": content},
    ]


def _summary(spot: dict[str, Any], summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "response.reasoning_summary_part.added", **spot, "part": {**summary, "text": ""}},
        *_told("response.reasoning_summary_text", spot, "text", summary.get("text", "")),
        {"type": "response.reasoning_summary_part.done", **spot, "part": summary},
    ]
