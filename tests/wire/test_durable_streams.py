"""The Durable Streams protocol's pure half: what is taken, what is refused, and how it is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import BadInput
from orchestrator.events import Cursor
from orchestrator.streams import JSON, START, Chunk, Producer, Stream, StreamName
from orchestrator.wire import durable_streams as wire

NAME = StreamName("default", "s")


def chunk(content_type: str, *bodies: bytes, up_to_date: bool = True, closed: bool = False) -> Chunk:
    end = Cursor(7, len(bodies))
    return Chunk(Stream(NAME, content_type, end, closed), Cursor(7, 0), end, bodies, up_to_date, closed)


def events(written: bytes) -> list[tuple[str, str, str]]:
    """(event, data, id) as an EventSource would see them (HTML Living Standard, 9.2.6)."""
    found: list[tuple[str, str, str]] = []
    kind, name = "", ""
    data: list[str] = []
    for line in written.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                found.append((kind, "\n".join(data), name))
            kind, data = "", []
        elif field == "event":
            kind = value
        elif field == "data":
            data.append(value)
        elif field == "id":
            name = value
    return found


@pytest.mark.parametrize(
    ("read", "taken"),
    [
        (wire.ttl_s, {"0": 0, "60": 60, "315360000": 315_360_000}),
        (wire.sub_offset, {"0": 0, "17": 17}),
        (wire.offset, {"-1": START, "now": None, "0000000000000003_0000000000000014": Cursor(3, 14)}),
        (wire.content_type, {"text/plain": "text/plain", "A/b;c=d": "A/b;c=d"}),
        (wire.expires_at, {"2030-01-31T12:00:00Z": datetime(2030, 1, 31, 12, tzinfo=UTC)}),
        (wire.expires_at, {"2030-01-31T12:00:00.5+02:00": datetime(2030, 1, 31, 10, 0, 0, 500_000, tzinfo=UTC)}),
    ],
)
def test_headers_that_are_right(read: Callable[[str], object], taken: dict[str, object]) -> None:
    assert {given: read(given) for given in taken} == taken


@pytest.mark.parametrize(
    ("read", "refused"),
    [
        (wire.ttl_s, ["", "-1", "+60", "060", "60.0", "6e1", " 60", "60\n", "٣", "315360001", "9" * 40]),
        (wire.sub_offset, ["", "-1", "abc", "1.5", "05", "+1", "9" * 40]),
        (wire.offset, ["", "0", "0,1", "0_0", "../1", "0000000000000003_000000000000001٤", "x" * 33, "NOW"]),
        (wire.fork_offset, ["now", "", "0"]),
        (
            wire.content_type,
            ["", "text", "text/", "/plain", "te xt/plain", "text/plain\r\nX: y", "a/" + "b" * 300, "ä/b"],
        ),
        (
            wire.expires_at,
            ["", "soon", "2030-01-31", "2030-01-31T12:00:00", "2030-13-31T12:00:00Z", "9999-12-31T23:59:59-23:59"],
        ),
    ],
)
def test_headers_that_are_not(read: Callable[[str], object], refused: list[str]) -> None:
    for value in refused:
        with pytest.raises(BadInput) as refusal:
            read(value)
        assert refusal.value.data["field"] and refusal.value.data["limit"] and refusal.value.data["remedy"]


def test_producers_come_with_three_headers_or_none() -> None:
    right = {wire.PRODUCER_ID: "p", wire.PRODUCER_EPOCH: "0", wire.PRODUCER_SEQ: str(2**53 - 1)}
    assert wire.producer(right) == Producer("p", 0, 2**53 - 1)
    assert wire.producer({}) is None
    wrong = [{name: value} for name, value in right.items()]
    wrong += [{**right, wire.PRODUCER_SEQ: bad} for bad in ("", "1abc", "-1", "1e3", str(2**53), "1.0")]
    wrong += [{**right, wire.PRODUCER_ID: bad} for bad in ("", "x" * 257)]
    for headers in wrong:
        with pytest.raises(BadInput):
            wire.producer(headers)


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        (b'{"a": 1}', [b'{"a": 1}']),
        (b" [ 1.0 ,\n2e400, [3 , 4] ] ", [b"1.0", b"2e400", b"[3 , 4]"]),
        (b'[{"a":1,"a":2}, "],[", null]', [b'{"a":1,"a":2}', b'"],["', b"null"]),
        ('["ü"]'.encode(), ['"ü"'.encode()]),
        (b"[[[1,2,3]]]", [b"[[1,2,3]]"]),
        (b"100000000000000000000000000000000001", [b"100000000000000000000000000000000001"]),
    ],
)
def test_json_is_flattened_by_one_level_and_kept_byte_for_byte(body: bytes, messages: list[bytes]) -> None:
    assert wire.elements(body) == messages
    assert wire.elements(b"[" + wire.flattened(body) + b"]") == messages


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"[]", b"[ ]", b"{ invalid json }", b"[1,]", b"[,1]", b"[1 2]", b"1 2", b"[1]]", b"[1", b"NaN",
     b"[Infinity]", b"\xff", b"\xef\xbb\xbf1", b"\xc2\xa01", b"[" * 100_000, b"'a'"],
)  # fmt: skip
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadInput):
        wire.flattened(body)


def test_only_a_new_stream_may_begin_with_an_empty_array() -> None:
    assert wire.flattened(b"[ ]", may_be_empty=True) == b""


@given(st.lists(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists), min_size=1))
def test_json_in_is_json_out(values: list[object]) -> None:
    kept = wire.flattened(json.dumps(values).encode())
    assert json.loads(wire.payload(JSON, [kept, kept])) == values * 2


def test_a_prefix_counts_bytes_or_messages() -> None:
    assert wire.prefix("text/plain", b"hello", 3) == b"hel"
    assert wire.prefix("text/plain", b"hello", 5) == b"hello"
    assert wire.prefix(JSON, b'{"a":"]"},[1,2],3', 2) == b'{"a":"]"},[1,2]'
    for media, body, beyond in (("text/plain", b"hello", 6), (JSON, b"1,2", 3)):
        with pytest.raises(BadInput):
            wire.prefix(media, body, beyond)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_no_text_can_end_its_event_or_lose_a_space(text: str) -> None:
    first, control = events(wire.sse(chunk("text/plain", text.encode()), "5"))
    assert first == ("data", text.replace("\r\n", "\n").replace("\r", "\n"), str(Cursor(7, 1)))
    assert control[0] == "control"


def test_an_event_source_is_told_where_it_is_at_every_event() -> None:
    data, control = events(wire.sse(chunk(JSON, b'{"a":1}', b"2,3"), "5"))
    assert data == ("data", '[{"a":1},2,3]', str(Cursor(7, 2)))
    assert control[2] == str(Cursor(7, 2))
    assert json.loads(control[1]) == {"streamNextOffset": str(Cursor(7, 2)), "streamCursor": "5", "upToDate": True}
    (alone,) = events(wire.sse(chunk("text/plain", closed=True), "5"))
    assert json.loads(alone[1]) == {"streamNextOffset": str(Cursor(7, 0)), "streamClosed": True, "upToDate": True}
    data, _ = events(wire.sse(chunk("image/png", b"\x00\x0a", b"\xff"), "5"))
    assert data[1] == "AAr/"


def test_a_tag_changes_with_all_that_a_304_would_hide() -> None:
    variants = [
        chunk("a/b", b"x"),
        chunk("a/b", b"x", b"y"),
        chunk("a/b", b"x", up_to_date=False),
        chunk("a/b", b"x", closed=True),
    ]
    tags = [wire.etag(variant) for variant in variants]
    assert len(set(tags)) == 4
    assert wire.matches(f'"other", W/{tags[0]}', tags[0]) and wire.matches("*", tags[0])
    assert not wire.matches(None, tags[0]) and not wire.matches(tags[1], tags[0])


def test_cursors_never_go_back() -> None:
    at = datetime(2024, 10, 9, 0, 10, tzinfo=UTC)
    assert wire.cursor(None, at, 3) == "30"
    assert wire.cursor("29", at, 3) == "30"
    assert wire.cursor("30", at, 3) == "33"
    assert wire.cursor("4711", at, 1) == "4712"
    assert wire.cursor("x", at, 3) == "30"


def test_how_a_stream_stands_in_headers() -> None:
    at = datetime(2030, 1, 31, 12, tzinfo=UTC)
    sliding = Stream(NAME, "text/plain", Cursor(7, 1), True, ttl_s=60, expires_at=at)
    assert wire.of_stream(sliding) == {
        "Content-Type": "text/plain",
        "Stream-Next-Offset": str(Cursor(7, 1)),
        "Stream-TTL": "60",
        "Stream-Closed": "true",
    }
    fixed = Stream(NAME, "text/plain", Cursor(7, 1), False, expires_at=at)
    assert wire.of_stream(fixed)["Stream-Expires-At"] == "2030-01-31T12:00:00.000Z"
