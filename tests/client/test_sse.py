"""The decoder of server-sent events: cut anywhere, the same events come out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.client import sse

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
TEXT = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=40)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[sse.ServerSent]]:
    """A stream as a server may write it, and what it means."""
    raw = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    expected: list[sse.ServerSent] = []
    last_id = ""
    for _ in range(draw(st.integers(0, 6))):
        end = draw(LINE_ENDS)
        event = draw(st.sampled_from(["", "event", "closed", "gap"]))
        lines = draw(st.lists(TEXT, max_size=3))
        if draw(st.booleans()):
            raw += b": " + draw(TEXT).encode() + end
        if event:
            raw += b"event: " + event.encode() + end
        for line in lines:
            raw += b"data: " + line.encode() + end
        if draw(st.booleans()):
            last_id = draw(TEXT)
            raw += b"id: " + last_id.encode() + end
        raw += end
        if lines:
            expected.append(sse.ServerSent(event or "message", "\n".join(lines), last_id))
    return raw, expected


@given(streams(), st.data())
def test_cut_anywhere_the_events_are_the_same(stream: tuple[bytes, list[sse.ServerSent]], data: st.DataObject) -> None:
    raw, expected = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    decoder = sse.Decoder()
    got = [
        event
        for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)
        for event in decoder.feed(raw[begin:end])
    ]
    assert got == expected


@given(streams())
def test_one_byte_at_a_time(stream: tuple[bytes, list[sse.ServerSent]]) -> None:
    raw, expected = stream
    decoder = sse.Decoder()
    assert [event for byte in raw for event in decoder.feed(bytes([byte]))] == expected


def test_data_without_a_space_is_the_same_data() -> None:
    assert [event.data for event in sse.Decoder().feed(b"data:x\n\ndata: x\n\ndata:  x\n\n")] == ["x", "x", " x"]


def test_an_event_that_is_not_finished_is_never_dispatched() -> None:
    assert list(sse.Decoder().feed(b"data: one\n\ndata: half")) == [sse.ServerSent("message", "one", "")]


def test_an_endless_line_is_refused() -> None:
    decoder = sse.Decoder()
    with pytest.raises(sse.TooLong):
        for _ in range(sse.MAX_EVENT_BYTES // (1 << 20) + 1):
            list(decoder.feed(b"x" * (1 << 20)))
