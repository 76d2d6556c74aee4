"""The body of a request off the wire: by length or chunked, plain or gzip; bounded. Knows no route."""

from __future__ import annotations

import zlib
from email.message import Message
from io import BufferedIOBase
from typing import Final

LIMIT_BYTES: Final = 64 << 20
LINE_BYTES: Final = 1024


class UnreadableBody(ValueError):
    """Not what its headers say."""


class TooLarge(ValueError):
    """More than LIMIT_BYTES."""

    def __init__(self) -> None:
        super().__init__(f"the body is larger than {LIMIT_BYTES} bytes")


def read_body(headers: Message, source: BufferedIOBase) -> bytes:
    """Raises UnreadableBody, TooLarge; after either the connection is of no more use."""
    if "chunked" in (headers.get("transfer-encoding") or "").lower():
        raw = _chunked(source)
    else:
        length = headers.get("content-length") or "0"
        if not length.isdigit():
            raise UnreadableBody(f"content-length: {length!r} is not a number")
        if int(length) > LIMIT_BYTES:
            raise TooLarge
        raw = _exactly(source, int(length))
    coding = (headers.get("content-encoding") or "identity").lower()
    if coding == "gzip":
        return _unpacked(raw)
    if coding != "identity":
        raise UnreadableBody(f"content-encoding: {coding!r} is not read here; send it plain or as gzip")
    return raw


def _exactly(source: BufferedIOBase, size_bytes: int) -> bytes:
    found = source.read(size_bytes)
    if len(found) != size_bytes:
        raise UnreadableBody("the body ends too early")
    return found


def _chunked(source: BufferedIOBase) -> bytes:
    found = bytearray()
    while True:
        line = source.readline(LINE_BYTES).split(b";")[0].strip()
        try:
            size_bytes = int(line, 16)
        except ValueError:
            raise UnreadableBody("a chunk of the body has no length") from None
        if size_bytes < 0 or len(found) + size_bytes > LIMIT_BYTES:
            raise TooLarge
        if size_bytes == 0:
            while source.readline(LINE_BYTES).strip():
                pass  # trailers
            return bytes(found)
        found += _exactly(source, size_bytes)
        source.readline(LINE_BYTES)


def _unpacked(raw: bytes) -> bytes:
    unpacking = zlib.decompressobj(wbits=31)
    try:
        found = unpacking.decompress(raw, LIMIT_BYTES)
    except zlib.error as wrong:
        raise UnreadableBody(f"the body is not gzip: {wrong}") from None
    if unpacking.unconsumed_tail:
        raise TooLarge
    return found
