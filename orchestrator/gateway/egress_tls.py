"""What a TLS client says in the clear before anything is encrypted (RFC 8446, RFC 6066; record layer of all versions).
Pure; knows no socket and no policy.

Read strictly: what a server might read differently from us is an error, since the name checked must be the name
served. Real clients never come near the bounds (a hello with post-quantum key shares has 1.8 KB, in one record).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

HANDSHAKE: Final = 22
CHANGE_CIPHER_SPEC: Final = 20
APPLICATION_DATA: Final = 23
RECORD_HEADER: Final = 5
RECORD_BYTES: Final = 16384 + 256  # RFC 8446, 5.2
HELLO_BYTES: Final = 65_536  # of one flight, record headers included
HELLO_RECORDS: Final = 64
SERVER_HELLO_BYTES: Final = RECORD_HEADER + 4 + 2 + 32  # up to the end of its random
_CLIENT_HELLO = 1
_SERVER_HELLO = 2
_SERVER_NAME = 0
_HIDDEN_NAMES = frozenset({0xFE0D, 0xFFCE})  # encrypted_client_hello (RFC 9849), encrypted_server_name (its draft)
# The random of a ServerHello that is a HelloRetryRequest: SHA-256 of "HelloRetryRequest" (RFC 8446, 4.1.3).
_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


class NotHello(ValueError):
    """It is not a ClientHello that can be read in one way only."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A ClientHello. `name`: the server it asks for, lower case; "" = it names none. `hides`: it carries another,
    encrypted hello, or grease that looks like one. `end`: bytes of the flight up to and including it."""

    name: str
    hides: bool
    end: int


@dataclass(frozen=True, slots=True)
class More:
    """Not all of it is there: ask again with at least `need` bytes."""

    need: int


def begins_as_tls(first: bytes) -> bool:
    """True if these first bytes of a stream can be TLS; one byte is enough to say no, three to be sure."""
    return first[:1] == bytes((HANDSHAKE,)) and first[1:2] in (b"", b"\x03")


def client_hello(flight: bytes) -> Hello | More:
    """The ClientHello a client's flight begins with. Raises NotHello."""
    message = bytearray()
    at = 0
    for _ in range(HELLO_RECORDS):
        if len(flight) < at + RECORD_HEADER:
            return _more(at + RECORD_HEADER)
        kind, major, size = flight[at], flight[at + 1], int.from_bytes(flight[at + 3 : at + 5], "big")
        if kind != HANDSHAKE or major != 3 or not 0 < size <= RECORD_BYTES:
            raise NotHello("a record that is no handshake")
        end = at + RECORD_HEADER + size
        if len(flight) < end:
            return _more(end)
        message += flight[at + RECORD_HEADER : end]
        at = end
        if message[0] != _CLIENT_HELLO:
            raise NotHello("a handshake that does not begin with a ClientHello")
        if len(message) >= 4:
            whole = 4 + int.from_bytes(message[1:4], "big")
            if whole > HELLO_BYTES or len(message) > whole:
                raise NotHello("more than a ClientHello before the server has answered")
            if len(message) == whole:
                return _read(bytes(message[4:]), at)
    raise NotHello(f"a ClientHello in more than {HELLO_RECORDS} records")


def skippable(flight: bytes) -> int | More:
    """The size of the first record if it says nothing of names (a change of ciphers, early data, an alert); 0 if it is
    a handshake. Raises NotHello."""
    if len(flight) < RECORD_HEADER:
        return More(RECORD_HEADER)
    if flight[0] == HANDSHAKE:
        return 0
    size = RECORD_HEADER + int.from_bytes(flight[3:5], "big")
    if flight[0] not in (CHANGE_CIPHER_SPEC, APPLICATION_DATA, 21) or flight[1] != 3 or size > RECORD_BYTES:
        raise NotHello("a record that is no TLS")
    return size if len(flight) >= size else More(size)


def asks_again(answer: bytes) -> bool | More:
    """True if a server's first bytes are a HelloRetryRequest: a second ClientHello follows, which a server may read
    anew, its name included."""
    if answer[:1] not in (b"", bytes((HANDSHAKE,))):
        return False
    if len(answer) < SERVER_HELLO_BYTES:
        return More(SERVER_HELLO_BYTES)
    return answer[RECORD_HEADER] == _SERVER_HELLO and answer[SERVER_HELLO_BYTES - 32 :][:32] == _RETRY_RANDOM


def _more(need: int) -> More:
    if need > HELLO_BYTES:
        raise NotHello(f"a ClientHello of more than {HELLO_BYTES} bytes")
    return More(need)


class _Fields:
    """Takes fields off the front."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, size: int) -> bytes:
        if len(self.rest) < size:
            raise NotHello("a ClientHello cut short")
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, prefix: int) -> bytes:
        return self.take(self.number(prefix))


def _read(body: bytes, end: int) -> Hello:
    hello = _Fields(body)
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session id
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compression methods
    extensions = _Fields(hello.vector(2) if hello.rest else b"")
    if hello.rest:
        raise NotHello("bytes after the extensions")
    found: dict[int, bytes] = {}
    while extensions.rest:
        kind, data = extensions.number(2), extensions.vector(2)
        if kind in found:
            raise NotHello("an extension twice")
        found[kind] = data
    name = _name(found[_SERVER_NAME]) if _SERVER_NAME in found else ""
    return Hello(name, not _HIDDEN_NAMES.isdisjoint(found), end)


def _name(extension: bytes) -> str:
    outer = _Fields(extension)
    names = _Fields(outer.vector(2))
    kind, name = names.number(1), names.vector(2)
    if kind != 0 or names.rest or outer.rest:
        raise NotHello("not exactly one server name")
    try:
        return name.decode("ascii").lower()
    except UnicodeDecodeError:
        raise NotHello("a server name that is not ASCII") from None
