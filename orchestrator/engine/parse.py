"""JSONL as a harness prints it: which lines are typed events, and what becomes of the others. Pure.

The contract: if the first non-empty line of stdout is a JSON object with a known `type`, the stream is JSONL and such
lines become typed events; any other line is demoted to `output`, its bytes exactly as printed. Nothing a harness
prints raises here.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from orchestrator.events import HARNESS_TYPES, OUTPUT, Entry

#: One frame yields at most so many entries (an append takes 4096 and a frame is never split); each may bring a
#: receipt with it. What is beyond is one `output`: only lines of under 33 bytes can be that many in one read.
MAX_ENTRIES: Final = 2000
_MAX_NESTING: Final = 64


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_constant=_no_constant)


def typed(line: bytes) -> dict[str, Any] | None:
    """The object of one line when it is a JSON object with a known `type`, else None."""
    text = line.strip()
    if not text.startswith(b"{") or not text.endswith(b"}"):
        return None
    try:
        said = _decoder.decode(text.decode())
    except (ValueError, RecursionError):  # not UTF-8, not JSON, an integer of 5,000 digits, nested too deep
        return None
    kind = said.get("type") if isinstance(said, dict) else None
    if not isinstance(kind, str) or kind not in HARNESS_TYPES:
        return None
    if rb"\ud" in text.lower() and not _encodable(said):  # half a surrogate pair: no JSON a reader could be sent
        return None
    if text.count(b"{") + text.count(b"[") > _MAX_NESTING and _nesting(said) > _MAX_NESTING:
        return None
    return dict(said)


def entries_of(data: bytes, *, src: int, time_ms: int) -> list[Entry]:
    """The events of whole stdout lines (or of a last line without its newline). Neighbouring lines that are not typed
    are one `output`; every byte of them is kept."""
    entries: list[Entry] = []
    plain: list[bytes] = []

    def demote() -> None:
        if plain:
            entries.append(_output(b"".join(plain), src, time_ms))
            plain.clear()

    start = 0
    while start < len(data):
        if len(entries) >= MAX_ENTRIES - 2:
            plain.append(data[start:])
            break
        stop = data.find(b"\n", start) + 1 or len(data)
        line = data[start:stop]
        start = stop
        said = typed(line)
        entry = _entry(said, src, time_ms) if said is not None else None
        if entry is None:
            plain.append(line)
        else:
            demote()
            entries.append(entry)
    demote()
    return entries


def _entry(said: dict[str, Any], src: int, time_ms: int) -> Entry | None:
    kind = said.pop("type")
    if kind == OUTPUT:
        # Typed output has one shape, so that a reader finds bytes in every `output`.
        text, stream = said.get("text"), said.get("stream", "stdout")
        if not isinstance(text, str) or not text or stream not in ("stdout", "stderr"):
            return None
        return Entry(OUTPUT, {"stream": stream}, text.encode(), "harness", src, time_ms)
    return Entry(kind, said, None, "harness", src, time_ms)


def _output(data: bytes, src: int, time_ms: int) -> Entry:
    return Entry(OUTPUT, {"stream": "stdout"}, data, "harness", src, time_ms)


def _encodable(said: Any) -> bool:
    try:
        json.dumps(said, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _nesting(value: Any) -> int:
    depth, level = 0, [value]
    while level and depth <= _MAX_NESTING:
        depth += 1
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = below
    return depth
