"""TLS clients' first words for tests: a ClientHello made by hand, and Python's own, taken out of its socket."""

from __future__ import annotations

import contextlib
import ssl

ECH = 0xFE0D


def client_hello(*names: str, extra: tuple[tuple[int, bytes], ...] = (), kind: int = 1) -> bytes:
    """A handshake message. No name = no server_name extension."""
    extensions = b"".join(u16(number) + vector(data, 2) for number, data in extra)
    if names:
        listed = b"".join(b"\0" + vector(name.encode(), 2) for name in names)
        extensions = u16(0) + vector(vector(listed, 2), 2) + extensions
    body = b"\x03\x03" + bytes(32) + vector(b"", 1) + vector(b"\x13\x01", 2) + vector(b"\0", 1) + vector(extensions, 2)
    return bytes([kind]) + len(body).to_bytes(3, "big") + body


def records(message: bytes, *, size: int = 16384, kind: int = 22) -> bytes:
    """The message in records of at most `size` bytes."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(bytes([kind]) + b"\x03\x01" + vector(piece, 2) for piece in pieces)


def reframed(hello: bytes, size: int) -> bytes:
    """A hello in one record, cut into records of `size`."""
    return records(hello[5:], size=size)


class Spoken:
    """Python's own TLS client without a socket: `out` is what it wants to send."""

    def __init__(self, name: str | None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.line = context.wrap_bio(self._in, self._out, server_hostname=name)

    def out(self, heard: bytes = b"") -> bytes:
        self._in.write(heard)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.line.do_handshake()
        return self._out.read()


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def vector(data: bytes, prefix: int) -> bytes:
    return len(data).to_bytes(prefix, "big") + data
