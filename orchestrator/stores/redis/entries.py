"""Entries and events as a history's stream keeps them. Knows no command and no record.

Two fields, always the same ones, so that a stream stores their names once per node: `h` = "<src> <attempt> <flag>
<epoch ms> <type> <data as JSON>", `b` = the body's bytes. Flags: p platform, h harness; capital when there is a body
(an empty one is one). A time of `-` is filled in by the script.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from datetime import UTC, datetime

from orchestrator.events import Entry, Event, Source
from orchestrator.stores.redis.record import dumps

#: What most entries carry: not encoded and decoded anew each time.
_COMMON = {name: dumps({"stream": name}) for name in ("stdout", "stderr")}
_COMMON_BACK = {text.encode(): {"stream": name} for name, text in _COMMON.items()}

Encoded = str | bytes | int


def encode(entries: Sequence[Entry], attempt: int) -> tuple[list[Encoded], int]:
    """Two arguments for each entry, and how many bytes of data and body they are."""
    out: list[Encoded] = []
    size = 0
    for entry in entries:
        body = entry.body
        flag = "p" if entry.source == "platform" else "h"
        if body is None:
            body = b""
        else:
            flag = flag.upper()
        data = entry.data
        text = (_COMMON.get(data.get("stream", "")) if len(data) == 1 else None) or dumps(data)
        out.append(f"{entry.src} {attempt} {flag} {entry.time_ms or '-'} {entry.type} {text}".encode())
        out.append(body)
        size += len(text) + len(body)
    return out, size


def decode(seq: int, fields: Sequence[bytes]) -> Event:
    """The event of one stream entry's flat fields."""
    _, attempt, flag, time_ms, kind, data = fields[1].split(b" ", 5)
    common = _COMMON_BACK.get(data)
    source: Source = "platform" if flag in b"pP" else "harness"
    return Event(
        seq,
        kind.decode(),
        datetime.fromtimestamp(int(time_ms) / 1000, UTC),
        int(attempt),
        source,
        json.loads(data.decode()) if common is None else common.copy(),
        fields[3] if flag in b"PH" else None,
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
