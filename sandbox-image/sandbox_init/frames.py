"""Frames: the one format spoken on init's socket and written in its spool.

A frame is a verb, a few named fields, a payload of bytes that is never looked at, and, when it belongs to the
spool, a number `src` and the time it was made. This room turns frames into bytes and bytes into frames. It does no
I/O and does not know what a verb means, who may say it, or in which order: that is `PROTOCOL.md` and the rooms
`connections` and `process`.

Layout, all integers big-endian::

    size    u32   bytes that follow the prefix: header + payload
    header  u32   bytes of the header
    src     u64   number in the spool, contiguous from 1; 0 = an answer outside the spool
    time_ms u64   epoch milliseconds when the frame was made; 0 = not said
    <header> = verb, "\\n", then nothing or one mapping of fields
    <payload>

Fields are typed by a letter (in the manner of bencode and netstrings, with text told apart from bytes because argv
and environment need not be UTF-8)::

    n · t · f · i<decimal>; · s<length>:<utf-8> · b<length>:<bytes> · l<count>:<items> · d<count>:<key s><value>…

Imported by PID 1, so it imports next to nothing: `_struct` is the C half of `struct`; json with re would double
init's memory. The writer of the spool and the reader on the host use this same file, so the two cannot drift.
"""

from __future__ import annotations

from _struct import Struct

TYPE_CHECKING = False  # `typing` costs init 1 MB; type checkers take this name for true
if TYPE_CHECKING:
    from typing import Any

    Value = Any  # None | bool | int | str | bytes | list[Value] | dict[str, Value]

PROTOCOL_VERSION = 1
OLDEST_PROTOCOL_VERSION = 1  # a worker speaks this version and the previous one; there is none before 1

PREFIX = Struct(">IIQQ")
MAX_PAYLOAD_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # argv and env travel here; the kernel's own limit for both is 2 MiB with an 8 MiB stack
MAX_FRAME_BYTES = PREFIX.size + MAX_HEADER_BYTES + MAX_PAYLOAD_BYTES
MAX_VERB_BYTES = 32
MAX_DEPTH = 6
MAX_ITEMS = 65_536  # in one frame, over all its lists and mappings
MAX_INT = (1 << 63) - 1
_CACHED_HEADERS = 256
_CACHED_HEADER_BYTES = 64
_VERB_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyz_")


class ProtocolError(Exception):
    """The bytes, or the fields given, are not a frame. The connection that sent them has lost its place: close it."""


class Frame:
    """One frame. Equal when everything in it is equal.

    verb: lower case letters and `_`, at most 32. fields: names to None, bool, int (64 bits, signed), str, bytes,
    lists and mappings of those. payload: at most 1 MiB. src: 0 outside the spool. time_ms: epoch milliseconds or 0.
    """

    __slots__ = ("fields", "payload", "src", "time_ms", "verb")

    def __init__(
        self,
        verb: str,
        fields: dict[str, Value] | None = None,
        payload: bytes = b"",
        src: int = 0,
        time_ms: int = 0,
    ) -> None:
        self.verb = verb
        self.fields: dict[str, Value] = {} if fields is None else fields
        self.payload = payload
        self.src = src
        self.time_ms = time_ms

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return NotImplemented
        return (
            self.verb == other.verb
            and self.src == other.src
            and self.time_ms == other.time_ms
            and self.fields == other.fields
            and self.payload == other.payload
        )

    __hash__ = None  # type: ignore[assignment]  # fields are mutable

    def __repr__(self) -> str:
        number = f"#{self.src} " if self.src else ""
        return f"<Frame {number}{self.verb} {self.fields} +{len(self.payload)} bytes>"


# -- fields to bytes -------------------------------------------------------------------------------------------------


def _put(out: list[bytes], value: Value, depth: int) -> int:
    """Append the encoding of `value`; returns how many items of lists and mappings it holds."""
    if value is None:
        out.append(b"n")
    elif value is True:
        out.append(b"t")
    elif value is False:
        out.append(b"f")
    elif isinstance(value, int):
        if not -MAX_INT - 1 <= value <= MAX_INT:
            raise ProtocolError(f"integer {value} does not fit 64 bits")
        out.append(b"i%d;" % value)
    elif isinstance(value, str):
        try:
            text = value.encode()
        except UnicodeEncodeError:
            raise ProtocolError("text is not valid Unicode; give bytes instead") from None
        out.append(b"s%d:" % len(text))
        out.append(text)
    elif isinstance(value, bytes):
        out.append(b"b%d:" % len(value))
        out.append(value)
    elif isinstance(value, list | tuple):
        if depth >= MAX_DEPTH:
            raise ProtocolError(f"fields are nested deeper than {MAX_DEPTH}")
        out.append(b"l%d:" % len(value))
        return len(value) + sum([_put(out, item, depth + 1) for item in value])
    elif isinstance(value, dict):
        return _put_mapping(out, value, depth)
    else:
        raise ProtocolError(f"a field cannot hold {type(value).__name__}")
    return 0


def _put_mapping(out: list[bytes], mapping: dict[str, Value], depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise ProtocolError(f"fields are nested deeper than {MAX_DEPTH}")
    out.append(b"d%d:" % len(mapping))
    items = len(mapping)
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise ProtocolError("a field's name is not text")
        _put(out, key, depth)
        items += _put(out, value, depth + 1)
    return items


def encode_head(verb: str, fields: dict[str, Value], payload_bytes: int, src: int = 0, time_ms: int = 0) -> bytes:
    """Prefix and header of a frame whose payload of `payload_bytes` the caller sends after it (writev).

    Raises ProtocolError for a verb, field, number or size outside the limits above.
    """
    try:
        head = verb.encode("ascii")
    except UnicodeEncodeError:
        raise ProtocolError("a verb is lower case ASCII letters and _") from None
    if not 0 < len(head) <= MAX_VERB_BYTES or not _VERB_LETTERS.issuperset(head):
        raise ProtocolError("a verb is 1 to 32 lower case ASCII letters and _")
    if not 0 <= src <= MAX_INT or not 0 <= time_ms <= MAX_INT:
        raise ProtocolError("src and time_ms are 0 or positive and fit 63 bits")
    if payload_bytes > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"payload has {payload_bytes} bytes, the limit is {MAX_PAYLOAD_BYTES}")
    out = [head, b"\n"]
    if fields and _put_mapping(out, fields, 0) > MAX_ITEMS:
        raise ProtocolError(f"fields hold more than {MAX_ITEMS} items")
    head = b"".join(out)
    if len(head) > MAX_HEADER_BYTES:
        raise ProtocolError(f"fields take {len(head)} bytes, the limit is {MAX_HEADER_BYTES}")
    return PREFIX.pack(len(head) + payload_bytes, len(head), src, time_ms) + head


def encode(frame: Frame) -> bytes:
    """The whole frame as bytes. Raises ProtocolError when it is outside the limits."""
    return encode_head(frame.verb, frame.fields, len(frame.payload), frame.src, frame.time_ms) + frame.payload


# -- bytes to fields -------------------------------------------------------------------------------------------------


class _Fields:
    """Reads the mapping of one header. Strict: one spelling per value, so hostile bytes find no odd corner."""

    __slots__ = ("data", "items", "pos")

    def __init__(self, data: bytes, pos: int) -> None:
        self.data = data
        self.pos = pos
        self.items = 0

    def number(self, end: bytes) -> int:
        stop = self.data.find(end, self.pos, self.pos + 21)
        if stop < 0:
            raise ProtocolError("a number in the fields does not end")
        text = self.data[self.pos : stop]
        digits = text[1:] if text[:1] == b"-" else text
        if not digits.isdigit() or (digits[:1] == b"0" and text != b"0"):
            raise ProtocolError("a number in the fields is not a plain decimal")
        self.pos = stop + 1
        return int(text)

    def size(self) -> int:
        number = self.number(b":")
        if number < 0:
            raise ProtocolError("a length in the fields is negative")
        return number

    def take(self) -> bytes:
        length = self.size()
        stop = self.pos + length
        if stop > len(self.data):
            raise ProtocolError("a string in the fields runs past the header")
        taken = self.data[self.pos : stop]
        self.pos = stop
        return taken

    def text(self) -> str:
        try:
            return self.take().decode()
        except UnicodeDecodeError:
            raise ProtocolError("text in the fields is not UTF-8") from None

    def count(self, depth: int) -> int:
        count = self.size()
        self.items += count
        if depth >= MAX_DEPTH or self.items > MAX_ITEMS:
            raise ProtocolError(f"fields are nested deeper than {MAX_DEPTH} or hold more than {MAX_ITEMS} items")
        return count

    def value(self, depth: int) -> Value:
        tag = self.data[self.pos : self.pos + 1]
        self.pos += 1
        if tag == b"s":
            return self.text()
        if tag == b"i":
            number = self.number(b";")
            if not -MAX_INT - 1 <= number <= MAX_INT:
                raise ProtocolError("an integer does not fit 64 bits")
            return number
        if tag == b"b":
            return self.take()
        if tag == b"l":
            return [self.value(depth + 1) for _ in range(self.count(depth))]
        if tag == b"d":
            return self.mapping(depth)
        if tag == b"n":
            return None
        if tag == b"t":
            return True
        if tag == b"f":
            return False
        raise ProtocolError("unknown type letter in the fields")

    def mapping(self, depth: int) -> dict[str, Value]:
        """The rest of a mapping whose letter has been read."""
        fields: dict[str, Value] = {}
        for _ in range(self.count(depth)):
            if self.data[self.pos : self.pos + 1] != b"s":
                raise ProtocolError("a field's name is not text")
            self.pos += 1
            name = self.text()
            if name in fields:
                raise ProtocolError(f"field {name[:40]!r} is there twice")
            fields[name] = self.value(depth + 1)
        return fields


def _decode_header(header: bytes) -> tuple[str, dict[str, Value]]:
    stop = header.find(b"\n", 0, MAX_VERB_BYTES + 1)
    if stop <= 0 or not _VERB_LETTERS.issuperset(header[:stop]):
        raise ProtocolError("a verb is 1 to 32 lower case ASCII letters and _")
    verb = header[:stop].decode("ascii")
    if stop + 1 == len(header):
        return verb, {}
    reader = _Fields(header, stop + 2)
    if header[stop + 1] != 0x64:  # "d"
        raise ProtocolError("the fields are not a mapping")
    fields = reader.mapping(0)
    if reader.pos != len(header):
        raise ProtocolError("bytes are left over after the fields")
    return verb, fields


class Decoder:
    """Bytes in, whole frames out; what is incomplete waits for the next `feed`. Pure: no I/O, no clock.

    Holds at most one incomplete frame beyond what was fed. After a ProtocolError it is of no further use.
    """

    __slots__ = ("_headers", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._headers: dict[bytes, tuple[str, dict[str, Value]]] = {}  # `output` headers repeat; do not parse them anew

    @property
    def pending_bytes(self) -> int:
        """Bytes of an incomplete frame held back. 0 between frames."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completes, in order. Raises ProtocolError at the first byte that cannot be a frame's;
        frames before it in the same `data` are lost with it, as the connection is."""
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._wanted(rest):  # do not copy a large half frame at every small read
                return []
            data = bytes(rest)
            rest.clear()
        frames: list[Frame] = []
        pos = 0
        available = len(data)
        while available - pos >= PREFIX.size:
            size, header_size, src, time_ms = PREFIX.unpack_from(data, pos)
            _check_prefix(size, header_size, src, time_ms)
            body = pos + PREFIX.size
            if available - body < size:
                break
            payload_at = body + header_size
            verb, fields = self._header(data[body:payload_at])
            pos = body + size
            frames.append(Frame(verb, fields, data[payload_at:pos], src, time_ms))
        if pos < available:
            rest += data[pos:] if pos else data
        return frames

    @staticmethod
    def _wanted(rest: bytearray) -> int:
        if len(rest) < PREFIX.size:
            return PREFIX.size
        size, header_size, src, time_ms = PREFIX.unpack_from(rest, 0)
        _check_prefix(size, header_size, src, time_ms)
        return int(PREFIX.size + size)

    def _header(self, header: bytes) -> tuple[str, dict[str, Value]]:
        known = self._headers.get(header)
        if known is None:
            known = _decode_header(header)
            if len(header) > _CACHED_HEADER_BYTES or len(self._headers) >= _CACHED_HEADERS:
                return known
            for value in known[1].values():
                if isinstance(value, list | dict):  # a shared list would let one frame's reader change another's
                    return known
            self._headers[header] = known
        return known[0], known[1].copy()


def _check_prefix(size: int, header_size: int, src: int, time_ms: int) -> None:
    if not 2 <= header_size <= MAX_HEADER_BYTES or not header_size <= size <= header_size + MAX_PAYLOAD_BYTES:
        raise ProtocolError("sizes in the prefix are outside the limits")
    if src > MAX_INT or time_ms > MAX_INT:
        raise ProtocolError("src or time_ms does not fit 63 bits")
