"""The codec as a pure function: what is encoded comes back, however it is cut, and nothing else does."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_init.frames import (
    MAX_DEPTH,
    MAX_HEADER_BYTES,
    MAX_ITEMS,
    MAX_PAYLOAD_BYTES,
    PREFIX,
    Decoder,
    Frame,
    ProtocolError,
    encode,
)

# A busy machine is not a failure.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
int64 = st.integers(-(2**63), 2**63 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | int64 | text | st.binary()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
).filter(lambda value: _depth(value) < MAX_DEPTH)
frames = st.builds(
    Frame,
    verb=st.from_regex(r"[a-z_]{1,32}", fullmatch=True),
    fields=st.dictionaries(text, values, max_size=6),
    payload=st.binary(max_size=300),
    src=st.integers(0, 2**63 - 1),
    time_ms=st.integers(0, 2**63 - 1),
)


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


@patient
@given(st.lists(frames, max_size=5), st.lists(st.integers(1, 60), max_size=200))
def test_frames_come_back_however_the_bytes_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(map(encode, sent))
    decoder = Decoder()
    got: list[Frame] = []
    for cut in cuts:
        got += decoder.feed(data[:cut])
        data = data[cut:]
    got += decoder.feed(data)
    assert got == sent
    assert decoder.pending_bytes == 0


@patient
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_any_bytes_give_frames_or_a_protocol_error(chunks: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for chunk in chunks:
            decoder.feed(chunk)
    except ProtocolError:
        pass


@patient
@given(frames, st.data())
def test_a_flipped_byte_gives_frames_or_a_protocol_error(frame: Frame, data: st.DataObject) -> None:
    raw = bytearray(encode(frame))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        got = Decoder().feed(bytes(raw))
    except ProtocolError:
        return
    # What still decodes is one spelling of one frame: encoding it gives back the bytes it was read from.
    for one in got:
        assert encode(one) == bytes(raw[: len(encode(one))])


def _raw(header: bytes, payload: bytes = b"") -> bytes:
    return PREFIX.pack(len(header) + len(payload), len(header), 0, 0) + header + payload


@pytest.mark.parametrize(
    "header",
    [
        b"\n",
        b"UPPER\n",
        b"x" * 33 + b"\n",
        b"verb",
        b"verb\nn",
        b"verb\nl0:",
        b"verb\nd1:",
        b"verb\nd1:s1:a",
        b"verb\nd1:b1:ai1;",
        b"verb\nd1:s1:ai01;",
        b"verb\nd1:s1:ai-0;",
        b"verb\nd1:s1:ai1_0;",
        b"verb\nd1:s1:ai 1;",
        b"verb\nd1:s1:ai9223372036854775808;",
        b"verb\nd1:s1:as-1:",
        b"verb\nd1:s1:as9:short",
        b"verb\nd1:s1:as1:\xff",
        b"verb\nd2:s1:ans1:an",
        b"verb\nd0:n",
        b"verb\nd99999:",
        b"verb\nd1:s1:al65537:" + b"n" * 65537,
        b"verb\n" + b"d1:s1:a" * 9 + b"n",
        b"verb\nd1:s1:a" + b"l1:" * 5000,
    ],
)
def test_odd_headers_are_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(_raw(header))


@pytest.mark.parametrize(
    ("size", "header", "src", "time_ms"),
    [
        (0, 0, 0, 0),
        (2**32 - 1, 8, 0, 0),
        (8, 2**32 - 1, 0, 0),
        (5, 6, 0, 0),
        (MAX_HEADER_BYTES + 1, MAX_HEADER_BYTES + 1, 0, 0),
        (8 + MAX_PAYLOAD_BYTES + 1, 8, 0, 0),
        (8, 8, 2**63, 0),
        (8, 8, 0, 2**63),
    ],
)
def test_sizes_outside_the_limits_are_refused_before_any_body_is_waited_for(
    size: int, header: int, src: int, time_ms: int
) -> None:
    with pytest.raises(ProtocolError):
        Decoder().feed(PREFIX.pack(size, header, src, time_ms))


@pytest.mark.parametrize(
    "frame",
    [
        Frame(""),
        Frame("Hello"),
        Frame("é"),
        Frame("a" * 33),
        Frame("a", {"x": 2**63}),
        Frame("a", {"x": 1.5}),
        Frame("a", {"x": "\ud800"}),
        Frame("a", {"x": ["y"] * (MAX_ITEMS + 1)}),
        Frame("a", {"x": "y" * MAX_HEADER_BYTES}),
        Frame("a", {1: "x"}),  # type: ignore[dict-item]
        Frame("a", payload=b"x" * (MAX_PAYLOAD_BYTES + 1)),
        Frame("a", src=-1),
        Frame("a", time_ms=2**63),
    ],
)
def test_what_cannot_be_read_back_cannot_be_written(frame: Frame) -> None:
    with pytest.raises(ProtocolError):
        encode(frame)


def test_the_largest_frame_passes_and_a_repeated_header_is_not_shared() -> None:
    largest = Frame("output", {"x": b"y" * (MAX_HEADER_BYTES - 40)}, bytes(MAX_PAYLOAD_BYTES), 7, 9)
    assert Decoder().feed(encode(largest)) == [largest]
    raw = encode(Frame("output", {"stream": "stdout"}, b"a"))
    first, second = Decoder().feed(raw + raw)
    first.fields["stream"] = "changed"
    assert second.fields == {"stream": "stdout"}
    assert {b"\xff", "text"} == set(Decoder().feed(encode(Frame("a", {"l": [b"\xff", "text"]})))[0].fields["l"])
