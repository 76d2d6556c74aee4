"""Server-Sent Events, decoded as the bytes come (WHATWG HTML, "Interpreting an event stream"). Knows nothing of what
the events mean.

Pieces may be cut anywhere: within a character, between the CR and the LF of one line end, within a field's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: A single event (one read of a harness's output is at most 64 KiB; base64, JSON and headroom on top of 4 MiB bodies).
MAX_EVENT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class ServerSent:
    """One dispatched event. `id` is the last one the stream has set, "" when it never did."""

    event: str
    data: str
    id: str


class TooLong(Exception):
    """One event exceeds MAX_EVENT_BYTES: this is not one of our streams."""


class Decoder:
    """`feed` bytes, iterate over the events that are complete with them. Comments and unknown fields are dropped; an
    event the stream ends in the middle of is never dispatched."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._scanned = 0  # bytes of `_rest` known to hold no line end
        self._first = True
        self._skip_lf = False
        self._event = ""
        self._data: list[str] = []
        self._size = 0
        self._id = ""
        self._ready: list[ServerSent] = []

    def feed(self, piece: bytes) -> Iterator[ServerSent]:
        """Events complete after `piece`, in order. Raises TooLong."""
        self._rest += piece
        for line in self._lines():
            self._line(line)
        if len(self._rest) + self._size > MAX_EVENT_BYTES:
            raise TooLong(f"one event of more than {MAX_EVENT_BYTES} bytes")
        ready, self._ready = self._ready, []
        return iter(ready)

    def _lines(self) -> Iterator[bytes]:
        begin = 0
        rest = self._rest
        while begin < len(rest):
            if self._skip_lf:
                self._skip_lf = False
                if rest[begin] == 0x0A:
                    begin += 1
                    self._scanned = max(self._scanned, begin)
                    continue
            start = max(begin, self._scanned)
            lf = rest.find(b"\n", start)
            cr = rest.find(b"\r", start, lf if lf >= 0 else len(rest))
            end = cr if cr >= 0 else lf
            if end < 0:
                break
            self._skip_lf = rest[end] == 0x0D
            yield bytes(rest[begin:end])
            begin = end + 1
        del rest[:begin]
        self._scanned = len(rest)

    def _line(self, raw: bytes) -> None:
        if self._first:
            self._first = False
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw:
            self._dispatch()
            return
        name, colon, value = raw.partition(b":")
        if colon and not name:
            return  # a comment: the server's way to keep a quiet line alive
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._data.append(text)
            self._size += len(value)
        elif name == b"event":
            self._event = text
        elif name == b"id" and "\0" not in text:
            self._id = text

    def _dispatch(self) -> None:
        if self._data:
            self._ready.append(ServerSent(self._event or "message", "\n".join(self._data), self._id))
        self._event, self._data, self._size = "", [], 0
