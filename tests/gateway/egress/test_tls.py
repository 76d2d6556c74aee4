"""Reading a ClientHello: what real clients send is read, what could be read in two ways is not."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.egress_tls import (
    HELLO_BYTES,
    HELLO_RECORDS,
    Hello,
    More,
    NotHello,
    asks_again,
    begins_as_tls,
    client_hello,
    skippable,
)
from tests.gateway.egress import hellos


def read(flight: bytes) -> Hello:
    """As a tunnel would: more only when it is asked for."""
    have = 0
    while isinstance(found := client_hello(flight[:have]), More):
        assert have < found.need <= len(flight), "it asks for what is not there"
        have = found.need
    return found


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("name", ["ok.test", "OK.Test", None])
def test_pythons_own_hello_is_read(version: ssl.TLSVersion, name: str | None) -> None:
    spoken = hellos.Spoken(name)
    spoken.line.context.maximum_version = version
    hello = spoken.out()
    assert begins_as_tls(hello[:1]) and begins_as_tls(hello)
    assert read(hello) == Hello(name.lower() if name else "", False, len(hello))


@given(st.integers(8, 400), st.binary(max_size=40))
def test_it_may_come_in_pieces_and_what_follows_is_left_alone(size: int, behind: bytes) -> None:
    flight = hellos.records(hellos.client_hello("ok.test", extra=((21, bytes(300)),)), size=size)
    assert read(flight + behind) == Hello("ok.test", False, len(flight))


def test_a_hidden_hello_is_seen() -> None:
    assert read(hellos.records(hellos.client_hello("ok.test", extra=((hellos.ECH, b"\0" * 8),)))).hides
    assert read(hellos.records(hellos.client_hello("ok.test", extra=((0xFFCE, b""),)))).hides


SNI = hellos.vector(b"\0" + hellos.vector(b"evil.test", 2), 2)


@pytest.mark.parametrize(
    "flight",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x2e\x01\x03\x01" + bytes(60),  # SSL 2's way to begin
        b"\x16\x02\x00\x00\x05hello",
        b"\x16\x03\x01\x00\x00",  # an empty record
        hellos.records(b"", kind=22) + b"\x15\x03\x01\x00\x02\x01\x00",  # an alert
        hellos.records(b"x" * 100, size=16384)[:3] + b"\x42\x00" + b"\x01" * 0x4200,  # a record above its bound
        hellos.records(hellos.client_hello("ok.test", kind=2)),
        hellos.records(hellos.client_hello("ok.test", "evil.test")),  # two names
        hellos.records(hellos.client_hello("ok.test", extra=((0, SNI),))),  # the extension twice
        hellos.records(hellos.client_hello("ok.test") + hellos.client_hello("evil.test")),  # two in one record
        hellos.records(hellos.client_hello("ok.test")[:-1] + b"\xff"),
        hellos.records(hellos.client_hello(extra=((0, b""),))),
        hellos.records(hellos.client_hello(extra=((0, hellos.vector(b"\1\0\0", 2)),))),  # a name of another kind
        hellos.records(hellos.client_hello("öl.test")),
        hellos.records(b"\1\2\0\0" + bytes(100)),  # longer than any client's
    ],
)
def test_what_can_be_read_in_two_ways_is_not_read(flight: bytes) -> None:
    with pytest.raises(NotHello):
        client_hello(flight + bytes(HELLO_BYTES))


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_are_a_hello_more_or_a_clear_no(data: bytes, framed: bool) -> None:
    flight = hellos.records(b"\1" + data) if framed else data
    try:
        found = client_hello(flight)
    except NotHello:
        return
    assert isinstance(found, Hello) or len(flight) < found.need <= HELLO_BYTES


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_hello_with_one_byte_changed_is_never_read_past_its_end(at: int, byte: int) -> None:
    flight = bytearray(hellos.Spoken("ok.test").out())
    flight[at % len(flight)] = byte
    try:
        found = client_hello(bytes(flight))
    except NotHello:
        return
    assert isinstance(found, More) or found.end == len(flight)


def test_bounds_are_those_of_the_flight() -> None:
    assert HELLO_RECORDS * 6 < HELLO_BYTES
    with pytest.raises(NotHello, match="more than 64 records"):
        client_hello(hellos.records(hellos.client_hello("ok.test", extra=((21, bytes(100)),)), size=1))


def test_a_retry_request_is_told_from_an_answer() -> None:
    retry = bytes.fromhex("160303005802000054 0303 cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
    assert asks_again(retry) is True and asks_again(retry + b"more") is True
    assert asks_again(retry[:-1]) == More(43) and asks_again(b"") == More(43)
    assert asks_again(retry[:-1] + b"\0") is False
    assert asks_again(b"\x15\x03\x03\x00\x02\x02\x28") is False  # an alert: as short as that
    assert asks_again(b"220 speak") is False


def test_what_may_stand_before_a_second_hello() -> None:
    assert skippable(b"\x14\x03\x03\x00\x01\x01rest") == 6
    assert skippable(b"\x17\x03\x03\x00\x05earlyrest") == 10
    assert skippable(b"\x17\x03\x03\x00\x05ea") == More(10)
    assert skippable(b"\x16\x03\x03\x00\x05hello") == 0
    assert skippable(b"\x14") == More(5)
    for wrong in (b"\x14\x02\x03\x00\x01\x01", b"\x19\x03\x03\x00\x01\x01", b"\x17\x03\x03\xff\xff\x01"):
        with pytest.raises(NotHello):
            skippable(wrong)
