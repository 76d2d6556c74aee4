"""Server-sent events, cut out of a byte stream and written. Knows no provider and no JSON. Pure.

An event is kept as its own bytes, so that what is passed on is what came. Lines end in LF, CRLF or CR; an event ends at
an empty line. What stands behind the last one is no event: a stream that broke there broke in the middle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

EVENT_STREAM: Final = "text/event-stream"
#: An empty line. Lone CRs end a line too, though nobody writes them.
_END: Final = re.compile(rb"\r?\n\r?\n|\r\r")


@dataclass(frozen=True, slots=True)
class SseEvent:
    """`raw`: all of it, with the empty line. `name` "" = none given. `data`: its data lines, joined by LF."""

    raw: bytes
    name: str
    data: bytes


class TooLong(ValueError):
    """One event is longer than allowed."""


class Splitter:
    """Feed it chunks, take whole events."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._rest = bytearray()
        self._searched = 0

    @property
    def rest(self) -> bytes:
        """What belongs to no whole event yet."""
        return bytes(self._rest)

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that are whole now. Raises TooLong."""
        rest = self._rest
        rest += chunk
        events = []
        begin = 0
        search = max(0, self._searched - 3)
        while found := _END.search(rest, search):
            events.append(parse(bytes(rest[begin : found.end()])))
            begin = search = found.end()
        del rest[:begin]
        self._searched = len(rest)
        if len(rest) > self._limit_bytes:
            raise TooLong(f"an event of more than {self._limit_bytes} bytes")
        return events


def parse(raw: bytes) -> SseEvent:
    """One event's fields."""
    name = b""
    data = []
    for line in raw.splitlines():
        if line.startswith(b"data:"):
            data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line.startswith(b"event:"):
            name = line[6:].strip()
    return SseEvent(raw, name.decode("utf-8", "replace"), data[0] if len(data) == 1 else b"\n".join(data))


def split(body: bytes) -> list[SseEvent]:
    """The events of a whole body."""
    return Splitter(len(body) + 1).feed(body)


def written(data: bytes, name: str = "") -> bytes:
    """One event. `data` holds no line end."""
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


def joined(events: Iterable[SseEvent]) -> bytes:
    return b"".join(event.raw for event in events)
