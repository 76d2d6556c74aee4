"""JSONL: typed lines become events, every other byte stays as it was printed, and nothing a harness prints raises."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.parse import MAX_ENTRIES, entries_of, typed
from orchestrator.events import HARNESS_TYPES, Entry


def printed(entries: list[Entry]) -> bytes:
    return b"".join(entry.body or b"" for entry in entries)


def test_typed_lines_and_others() -> None:
    data = b'{"type":"progress","step":3}\nplain\n\n{"type":"no such"}\n{"type":"result","text":"done"}\nrest'
    entries = entries_of(data, src=7, time_ms=9)
    assert [(e.type, dict(e.data), e.body) for e in entries] == [
        ("progress", {"step": 3}, None),
        ("output", {"stream": "stdout"}, b'plain\n\n{"type":"no such"}\n'),
        ("result", {"text": "done"}, None),
        ("output", {"stream": "stdout"}, b"rest"),
    ]
    assert {(e.src, e.time_ms, e.source) for e in entries} == {(7, 9, "harness")}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"{}",
        b"[1]",
        b'{"type":null}',
        b'{"type":["progress"]}',
        b'{"type":"execution.finished"}',
        b'{"type":"message.delivered","n":1}',
        b'{"type":"progress","x":NaN}',
        b'{"type":"progress","x":Infinity}',
        b'{"type":"progress","x":"\\ud800"}',
        b'{"type":"progress","x":' + b"9" * 5000 + b"}",
        b'{"type":"progress","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"type":"progress","x":' + b'{"a":' * 65 + b"1" + b"}" * 65 + b"}",
        b'{"type":"progress","x":"\xff"}',
        b'{"type":"progress"} trailing',
    ],
)
def test_what_is_not_typed(line: bytes) -> None:
    assert typed(line) is None
    assert printed(entries_of(line + b"\n", src=1, time_ms=0)) == line + b"\n"


def test_escaped_pairs_are_whole_text() -> None:
    assert typed(b'{"type":"progress","x":"\\ud83d\\ude00"}') == {"type": "progress", "x": "😀"}


def test_typed_output_has_bytes_like_any_other() -> None:
    (entry,) = entries_of(b'{"type":"output","stream":"stderr","text":"hm"}\n', src=1, time_ms=0)
    assert (entry.type, dict(entry.data), entry.body) == ("output", {"stream": "stderr"}, b"hm")
    odd = b'{"type":"output","stream":"stdin","text":"hm"}\n'
    assert printed(entries_of(odd, src=1, time_ms=0)) == odd


def test_more_lines_than_an_append_takes_are_one_output_at_the_end() -> None:
    data = b'{"type":"plan"}\n' * (MAX_ENTRIES + 500)
    entries = entries_of(data, src=1, time_ms=0)
    assert len(entries) <= MAX_ENTRIES
    typed_lines = sum(entry.type == "plan" for entry in entries)
    assert printed(entries) == b'{"type":"plan"}\n' * (MAX_ENTRIES + 500 - typed_lines)


line = st.one_of(
    st.binary(max_size=40).map(lambda b: b.replace(b"\n", b" ")),
    st.sampled_from(sorted(HARNESS_TYPES - {"output"})).map(lambda t: json.dumps({"type": t, "x": 1}).encode()),
)


@given(st.lists(line, max_size=30), st.booleans())
def test_no_byte_is_lost_and_order_is_kept(lines: list[bytes], ends: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    told = b""
    for entry in entries_of(data, src=1, time_ms=0):
        told += (
            entry.body if entry.body is not None else json.dumps({"type": entry.type, **entry.data}).encode() + b"\n"
        )
    assert told == data or told == data + b"\n"  # a typed last line has its newline understood
