"""What a command printed, as a model can read it: head and tail, with the whole in a file. Knows no command."""

from __future__ import annotations

import re
from pathlib import Path

HEAD_BYTES = 8_000
TAIL_BYTES = 8_000
_HEADER = 20  # of the wrapper's `tail`: how many bytes were written to it in all
# CSI and OSC sequences, other escapes, and control characters but newline and tab.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_()][0-9A-B]?")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def readable(data: bytes) -> str:
    """Any bytes as text: what is no UTF-8 becomes �, escapes go, of a line that was drawn over the last is kept."""
    text = _ESCAPES.sub("", data.decode(errors="replace")).replace("\r\n", "\n")
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return _CONTROLS.sub("", "\n".join(lines))


def view(folder: Path) -> str:
    """Head and tail of the output in the folder of a call, as it is now."""
    head, tail, size = _ends(folder)
    if size <= HEAD_BYTES + TAIL_BYTES:
        return readable(head + tail)
    left_out = f"[... {size - HEAD_BYTES - TAIL_BYTES} of {size} bytes left out; the whole is in {folder}/out ...]"
    return f"{readable(head)}\n{left_out}\n{readable(tail)}"


def since(folder: Path, at: int, limit_bytes: int) -> tuple[bytes, int]:
    """What came after byte `at`, at most so many, and where it ends: for people who watch."""
    try:
        with open(folder / "out", "rb") as file:
            file.seek(at)
            data = file.read(limit_bytes)
    except OSError:
        return b"", at
    return data, at + len(data)


def shorten(text: str, limit: int) -> str:
    """At most about so many characters, the middle left out."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def _ends(folder: Path) -> tuple[bytes, bytes, int]:
    try:
        with open(folder / "out", "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            head = file.read(HEAD_BYTES)
            file.seek(max(HEAD_BYTES, size - TAIL_BYTES))
            tail = file.read(TAIL_BYTES)
    except OSError:
        return b"", b"", 0
    try:
        with open(folder / "tail", "rb") as file:
            written = int(file.read(_HEADER))
            room = max(file.seek(0, 2) - _HEADER, 1)
            start = (written - TAIL_BYTES) % room if written > TAIL_BYTES else 0
            file.seek(_HEADER + start)
            tail = file.read(TAIL_BYTES)
            if len(tail) < min(TAIL_BYTES, written):  # it goes round
                file.seek(_HEADER)
                tail += file.read(min(TAIL_BYTES, written) - len(tail))
            size += written
    except (OSError, ValueError):
        pass
    return head, tail, size
