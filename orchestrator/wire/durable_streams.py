"""The Durable Streams protocol (public, draft 1.0) as pure functions: headers in, headers and bodies out. Knows no
store and no framework.

The names of sections are those of its PROTOCOL.md. What its text leaves open and its public conformance suite does not
is said where it matters.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from orchestrator.errors import BadInput
from orchestrator.events import Cursor
from orchestrator.streams import JSON, START, Chunk, Producer, Stream

NEXT_OFFSET: Final = "Stream-Next-Offset"
UP_TO_DATE: Final = "Stream-Up-To-Date"
CURSOR: Final = "Stream-Cursor"
CLOSED: Final = "Stream-Closed"
TTL: Final = "Stream-TTL"
EXPIRES_AT: Final = "Stream-Expires-At"
STREAM_SEQ: Final = "Stream-Seq"
FORKED_FROM: Final = "Stream-Forked-From"
FORK_OFFSET: Final = "Stream-Fork-Offset"
FORK_SUB_OFFSET: Final = "Stream-Fork-Sub-Offset"
PRODUCER_ID: Final = "Producer-Id"
PRODUCER_EPOCH: Final = "Producer-Epoch"
PRODUCER_SEQ: Final = "Producer-Seq"
PRODUCER_EXPECTED: Final = "Producer-Expected-Seq"
PRODUCER_RECEIVED: Final = "Producer-Received-Seq"
SSE_ENCODING: Final = "Stream-SSE-Data-Encoding"

#: For a browser on another origin: what it may send, and what it may read.
SENT: Final = (
    *("Content-Type", CLOSED, TTL, EXPIRES_AT, STREAM_SEQ, FORKED_FROM, FORK_OFFSET, FORK_SUB_OFFSET),
    *(PRODUCER_ID, PRODUCER_EPOCH, PRODUCER_SEQ),
)
ANSWERED: Final = (
    *(NEXT_OFFSET, UP_TO_DATE, CURSOR, CLOSED, TTL, EXPIRES_AT, SSE_ENCODING),
    *(PRODUCER_EPOCH, PRODUCER_SEQ, PRODUCER_EXPECTED, PRODUCER_RECEIVED),
)

#: Section 8.1: cursors count intervals of 20 s since this day.
_CURSOR_EPOCH_S: Final = int(datetime(2024, 10, 9, tzinfo=UTC).timestamp())
_CURSOR_INTERVAL_S: Final = 20
#: "Random jitter of 1-3600 seconds", in intervals.
CURSOR_JITTER: Final = 3600 // _CURSOR_INTERVAL_S
#: What a JavaScript number holds exactly (section 5.2.1).
_MOST: Final = 2**53 - 1
_TTL_MOST_S: Final = 10 * 365 * 86_400
_HEADER_CHARS: Final = 256
_WHOLE: Final = re.compile(r"0|[1-9][0-9]{0,15}")
_DIGITS: Final = re.compile(r"[0-9]{1,16}")
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_MEDIA_TYPE: Final = re.compile(rf"{_TOKEN}/{_TOKEN}(\s*;.*)?", re.DOTALL)
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")


# ---- reading a request


def offset(given: str) -> Cursor | None:
    """An offset of a query or a header: a place, START for `-1`, None for `now`. Raises BadInput."""
    if given == "-1":
        return START
    if given == "now":
        return None
    try:
        return Cursor.parse(given)
    except ValueError:
        raise BadInput(
            "this is not an offset",
            field="offset",
            limit="-1, now, or what a Stream-Next-Offset header said",
            remedy="start again from -1",
        ) from None


def fork_offset(given: str) -> Cursor:
    """As `offset`, but a fork's point cannot be `now`: leaving the header out says that."""
    at = offset(given)
    if at is None:
        raise _bad(FORK_OFFSET, "an offset, or no header for the source's tail")
    return at


def sub_offset(given: str) -> int:
    """How far into the append at the fork's offset. Raises BadInput."""
    if not _WHOLE.fullmatch(given):
        raise _bad(FORK_SUB_OFFSET, "a whole number from 0, without sign or leading zeros")
    return int(given)


def is_true(given: str | None) -> bool:
    """Section 4.1: only `true`, in any case, is true; whatever else is as if it were absent."""
    return given is not None and given.strip().lower() == "true"


def ttl_s(given: str) -> int:
    """Whole seconds; `+60`, `060`, `60.0` and `6e1` are refused (section 5.1)."""
    if not _WHOLE.fullmatch(given) or int(given) > _TTL_MOST_S:
        raise _bad(TTL, f"whole seconds from 0 to {_TTL_MOST_S}, without sign, point or leading zeros")
    return int(given)


def expires_at(given: str) -> datetime:
    """An RFC 3339 time as aware UTC."""
    try:
        if not _RFC3339.fullmatch(given):
            raise ValueError(given)
        return datetime.fromisoformat(given.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise _bad(EXPIRES_AT, "an RFC 3339 time with its zone, such as 2030-01-31T12:00:00Z") from None


def content_type(given: str) -> str:
    """As it was given, if it is one."""
    if len(given) > _HEADER_CHARS or not given.isascii() or not given.isprintable() or not _MEDIA_TYPE.fullmatch(given):
        raise _bad("Content-Type", f"type/subtype with parameters, at most {_HEADER_CHARS} characters")
    return given


def stream_seq(given: str) -> str:
    """Opaque; compared byte by byte."""
    if len(given) > _HEADER_CHARS:
        raise _bad(STREAM_SEQ, f"at most {_HEADER_CHARS} characters")
    return given


def producer(headers: Mapping[str, str]) -> Producer | None:
    """All three headers or none. Raises BadInput."""
    given = [headers.get(name) for name in (PRODUCER_ID, PRODUCER_EPOCH, PRODUCER_SEQ)]
    if all(value is None for value in given):
        return None
    who, epoch, seq = given
    if not who or len(who) > _HEADER_CHARS:
        raise _bad(PRODUCER_ID, f"1 to {_HEADER_CHARS} characters, together with {PRODUCER_EPOCH} and {PRODUCER_SEQ}")
    return Producer(who, _number(PRODUCER_EPOCH, epoch), _number(PRODUCER_SEQ, seq))


def flattened(body: bytes, *, may_be_empty: bool = False) -> bytes:
    """The messages of a JSON body, joined with commas: an array's elements (one level), or the one value. Each stays
    byte for byte as it was sent: a number keeps its digits, an object its order. Raises BadInput."""
    return b",".join(elements(body, may_be_empty=may_be_empty))


def elements(body: bytes, *, may_be_empty: bool = False) -> list[bytes]:
    """See `flattened`."""
    try:
        text = body.decode()
        found = [piece.encode() for piece in _elements(text)]
    except (ValueError, RecursionError) as wrong:
        raise BadInput(
            f"the body is not JSON: {wrong}", field="body", limit="JSON in UTF-8", remedy="send one value or an array"
        ) from None
    if not found and not may_be_empty:
        raise BadInput(
            "an empty array adds nothing", field="body", limit="at least one message", remedy="send no request at all"
        )
    return found


def prefix(media: str, body: bytes, count: int) -> bytes:
    """The first `count` bytes of an append, or messages of a JSON one. Raises BadInput if it has less."""
    if media == JSON:
        messages = elements(b"[" + body + b"]")
        taken, there = b",".join(messages[:count]), len(messages)
    else:
        taken, there = body[:count], len(body)
    if count > there:
        raise _bad(FORK_SUB_OFFSET, f"at most {there}, the size of the append at the fork's offset")
    return taken


def media_type(given: str) -> str:
    """Without parameters, lower case: what is compared."""
    return given.partition(";")[0].strip().lower()


# ---- answering


def of_stream(stream: Stream) -> dict[str, str]:
    """The headers that tell how a stream stands (sections 5.1 and 5.5)."""
    headers = {"Content-Type": stream.content_type, NEXT_OFFSET: str(stream.tail)}
    if stream.ttl_s is not None:
        headers[TTL] = str(stream.ttl_s)
    elif stream.expires_at is not None:
        headers[EXPIRES_AT] = rfc3339(stream.expires_at)
    if stream.closed:
        headers[CLOSED] = "true"
    return headers


def of_chunk(chunk: Chunk) -> dict[str, str]:
    """The headers of a read (section 5.6)."""
    headers = {"Content-Type": chunk.stream.content_type, NEXT_OFFSET: str(chunk.next)}
    if chunk.up_to_date:
        headers[UP_TO_DATE] = "true"
    if chunk.closed:
        headers[CLOSED] = "true"
    return headers


def etag(chunk: Chunk) -> str:
    """Changes with the range, with the closing (section 8.1) and with reaching the tail: a 304 hides none of them."""
    return f'"{chunk.start}:{chunk.next}{":t" if chunk.up_to_date else ""}{":c" if chunk.closed else ""}"'


def matches(if_none_match: str | None, tag: str) -> bool:
    """RFC 9110, 13.1.2: weak comparison with any of a list."""
    if if_none_match is None:
        return False
    given = [item.strip().removeprefix("W/") for item in if_none_match.split(",")]
    return "*" in given or tag in given


def cursor(given: str | None, now: datetime, jitter: int) -> str:
    """Section 8.1: the number of the interval; more than the client's own if it is not behind. `jitter` 1 to
    CURSOR_JITTER."""
    interval = (int(now.timestamp()) - _CURSOR_EPOCH_S) // _CURSOR_INTERVAL_S
    if given is not None and _DIGITS.fullmatch(given) and int(given) >= interval:
        return str(int(given) + jitter)
    return str(interval)


def payload(media: str, bodies: Sequence[bytes]) -> bytes:
    """The body of a read: bytes one after another, or one JSON array (section 7.1)."""
    return b"[" + b",".join(bodies) + b"]" if media == JSON else b"".join(bodies)


def sse_is_text(media: str) -> bool:
    """Section 5.8: text/* and application/json travel as they are, everything else as base64."""
    return media.startswith("text/") or media == JSON


def sse(chunk: Chunk, cursor: str) -> bytes:
    """The events of one chunk: `data`, if there is any, and `control` after it. `id:` stands on both, so that a browser
    that comes back by itself says where it was (Last-Event-ID)."""
    out = b""
    name = str(chunk.next)
    if chunk.bodies:
        media = media_type(chunk.stream.content_type)
        content = payload(media, chunk.bodies)
        out += _event("data", name, content if sse_is_text(media) else base64.b64encode(content))
    control: dict[str, str | Literal[True]] = {"streamNextOffset": name}
    if chunk.closed:
        control["streamClosed"] = True
    else:
        control["streamCursor"] = cursor
    if chunk.up_to_date:
        control["upToDate"] = True
    return out + _event("control", name, json.dumps(control, separators=(",", ":")).encode())


def rfc3339(moment: datetime) -> str:
    """Milliseconds, `Z`."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _event(kind: str, name: str, content: bytes) -> bytes:
    lines = b"".join(b"data:" + (b" " if line.startswith(b" ") else b"") + line + b"\n" for line in _lines(content))
    # No space after the colon (the suite looks for that), but for a line that begins with one: readers take one away.
    # `data` follows `event` at once for the same reason.
    return f"event: {kind}\n".encode() + lines + f"id: {name}\n\n".encode()


def _lines(content: bytes) -> Iterable[bytes]:
    """Every kind of line end that SSE knows: a payload cannot end its event, or begin another."""
    return re.split(rb"\r\n|\r|\n", content)


def _elements(text: str) -> Iterator[str]:
    decode, at = _DECODER.raw_decode, _skip(text, 0)
    if text[at : at + 1] != "[":
        _, end = decode(text, at)
        _ended(text, end)
        yield text[at:end]
        return
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        _ended(text, at + 1)
        return
    while True:
        _, end = decode(text, at)
        yield text[at:end]
        end = _skip(text, end)
        mark = text[end : end + 1]
        if mark == "]":
            _ended(text, end + 1)
            return
        if mark != ",":
            raise ValueError(f"expected , or ] at character {end}")
        at = _skip(text, end + 1)


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    assert found is not None  # the pattern matches the empty string too
    return found.end()


def _ended(text: str, at: int) -> None:
    if _skip(text, at) != len(text):
        raise ValueError(f"something follows the value at character {at}")


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


#: JSON's own four blanks; `\s` has more.
_BLANK: Final = re.compile(r"[ \t\n\r]*")
#: Only where a value ends is of interest: its text is kept, so digits are not read as numbers.
_DECODER: Final = json.JSONDecoder(parse_constant=_constant, parse_int=str, parse_float=str)


def _number(name: str, given: str | None) -> int:
    if given is None or not _DIGITS.fullmatch(given) or int(given) > _MOST:
        raise _bad(name, f"a whole number from 0 to {_MOST}")
    return int(given)


def _bad(header: str, limit: str) -> BadInput:
    return BadInput(f"{header} is not right", field=header, limit=limit, remedy=f"correct the header {header}")
