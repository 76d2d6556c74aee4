"""An event as JSON, both ways, and pages of them. Knows no store, no SSE and no socket.

`encode` is on the path of every byte a viewer sees, so it builds the text itself (2–3 µs an event; a pydantic model
costs ten times that). `EventAnswer` describes the same shape for the OpenAPI document and for clients.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from pydantic import Field

from orchestrator.events import OUTPUT, Event, Source
from orchestrator.wire.shape import AnswerModel, Moment, rfc3339

_encoder: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_quote: Final = json.encoder.encode_basestring  # JSON string, non-ASCII as it is


class EventAnswer(AnswerModel):
    """One numbered entry of a history. `output`: data has `stream` and `data` (text) or, where the bytes are not UTF-8,
    `data_b64`."""

    seq: int
    type: str
    time: Moment
    attempt: int
    source: Source
    data: dict[str, Any] = Field(default_factory=dict)


class EventPage(AnswerModel):
    """`next`: where to go on. `closed`: the last event is the end, for ever. `up_to_date`: nothing more right now."""

    events: list[EventAnswer]
    next: str
    tail: int
    closed: bool
    up_to_date: bool


def encode(event: Event) -> bytes:
    """One event as one line of JSON, UTF-8."""
    data = event.data
    body = event.body
    head = (
        f'{{"seq":{event.seq},"type":{_quote(event.type)},"time":"{rfc3339(event.time)}",'
        f'"attempt":{event.attempt},"source":"{event.source}","data":'
    )
    if body is None:
        return head.encode() + _json(data) + b"}"
    try:
        key, text = "data", body.decode()
    except UnicodeDecodeError:
        key, text = "data_b64", base64.b64encode(body).decode("ascii")
    if len(data) == 1 and type(stream := data.get("stream")) is str:  # nearly every event there is
        return f'{head}{{"stream":{_quote(stream)},"{key}":{_quote(text)}}}}}'.encode()
    return head.encode() + _json({**data, key: text}) + b"}"


def _json(data: Mapping[str, Any]) -> bytes:
    try:
        return _encoder.encode(dict(data)).encode()
    except UnicodeEncodeError:
        # A harness may print "\ud800" in its JSON: legal escape, no UTF-8. Escaped again it stays what it was.
        return json.dumps(dict(data), separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        # NaN, or nested beyond what an encoder walks: the line is the harness's, the page must stay JSON.
        return json.dumps({"unprintable": [str(key)[:100] for key in list(data)[:20]]}).encode()


def decode(shape: Mapping[str, Any]) -> Event:
    """The noun of one event's JSON object; the body's bytes come back exactly. Raises KeyError, ValueError."""
    data = dict(shape["data"])
    body: bytes | None = None
    if shape["type"] == OUTPUT:
        if "data_b64" in data:
            body = base64.b64decode(data.pop("data_b64"), validate=True)
        elif "data" in data:
            body = str(data.pop("data")).encode("utf-8", "surrogatepass")
    return Event(
        seq=shape["seq"],
        type=shape["type"],
        time=datetime.fromisoformat(shape["time"]),
        attempt=shape["attempt"],
        source=shape["source"],
        data=data,
        body=body,
    )
