"""Entries and events as a history's stream keeps them. Knows no command and no record.

Four fields, always the same ones, so that a stream stores their names once per node: `h` = "<src> <attempt> <flags>
<type>", `t` = epoch ms, `d` = data as JSON, `b` = the body's bytes. Flags: p platform, h harness; capital when there
is a body (an empty one is one).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from orchestrator.events import Entry, Event, Source
from orchestrator.stores.redis.record import dumps

#: What most entries carry: not encoded and decoded anew each time.
_COMMON = {name: dumps({"stream": name}).encode() for name in ("stdout", "stderr")}
_COMMON_BACK = {text: {"stream": name} for name, text in _COMMON.items()}

Encoded = str | bytes | int


def encode(entries: Sequence[Entry], attempt: int) -> tuple[list[Encoded], int]:
    """Four arguments for each entry, and how many bytes of data and body they are."""
    out: list[Encoded] = []
    size = 0
    for entry in entries:
        body = entry.body
        flag = "p" if entry.source == "platform" else "h"
        data = _data(entry.data)
        out.append(f"{entry.src} {attempt} {flag if body is None else flag.upper()} {entry.type}")
        out.append(entry.time_ms)
        out.append(data)
        out.append(body or b"")
        size += len(data) + len(body or b"")
    return out, size


def _data(data: Mapping[str, Any]) -> bytes:
    if len(data) == 1:
        known = _COMMON.get(data.get("stream", ""))
        if known is not None:
            return known
    return dumps(data).encode()


def decode(seq: int, fields: Sequence[bytes]) -> Event:
    """The event of one stream entry's flat fields."""
    _, attempt, flag, kind = fields[1].split(b" ", 3)
    data = fields[5]
    common = _COMMON_BACK.get(data)
    source: Source = "platform" if flag in b"pP" else "harness"
    return Event(
        seq,
        kind.decode(),
        datetime.fromtimestamp(int(fields[3]) / 1000, UTC),
        int(attempt),
        source,
        json.loads(data) if common is None else common.copy(),
        fields[7] if flag in b"PH" else None,
    )


def split(reply: Sequence[tuple[bytes, list[bytes]]]) -> tuple[list[Event], bool]:
    """Events of an XRANGE or XREAD reply, and whether the end marker (`<seq>-1`) is among it."""
    events: list[Event] = []
    for name, fields in reply:
        seq, _, part = name.partition(b"-")
        if part != b"0":
            return events, True
        events.append(decode(int(seq), fields))
    return events, False


def size_of(event: Event) -> int:
    """Roughly what it takes on the way to a reader, in bytes: enough to bound a page."""
    return 64 + len(event.body or b"") + (len(dumps(event.data)) if event.type != "output" else 20)


def text_or_base64(body: bytes) -> dict[str, str]:
    """`text` where the bytes are UTF-8, else `data_b64`: what JSON can carry."""
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"data_b64": base64.b64encode(body).decode()}
