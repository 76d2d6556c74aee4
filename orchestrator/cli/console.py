"""What the command line prints: data on stdout, everything else on stderr. Knows no verb.

Text that came from elsewhere (names, tasks, file names) cannot steer the terminal: control characters are shown, not
obeyed. A harness's own output is the exception: it is what was asked for, byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from orchestrator.errors import CarrelError

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))}
# Bidirectional overrides make a line read as something it is not.
_ESCAPES |= {code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)}
# Inside JSON the same characters, as JSON escapes them (below 0x20 it does so itself).
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in _ESCAPES if code >= 0x7F}


def printable(text: str, *, most: int = 0) -> str:
    """On one line, without anything a terminal would obey; cut to `most` characters (0 = not cut)."""
    text = text.encode("utf-8", "replace").decode().translate(_ESCAPES)
    return text[: most - 1] + "…" if most and len(text) > most else text


def line(text: str) -> None:
    """One line of data."""
    sys.stdout.write(text + "\n")


def json_line(text: str) -> None:
    """One JSON document on one line, whatever its reader takes for the end of one (many break at U+0085 or U+2028), and
    without anything a terminal would obey."""
    line(text.translate(_JSON_ESCAPES))


def document(value: Any) -> None:
    """One JSON document of data, indented for a person, whole for a program."""
    json_line(json.dumps(value, ensure_ascii=False, indent=2))


def note(text: str) -> None:
    """Something a person may want to know."""
    sys.stderr.write(f"carrel: {text}\n")
    sys.stderr.flush()


def error(text: str, remedy: str = "") -> None:
    """What went wrong, and what to do."""
    _flush_data()
    note(printable(text))
    if remedy:
        sys.stderr.write(f"  → {printable(remedy)}\n")
        sys.stderr.flush()


def refusal(refused: CarrelError) -> None:
    """An error of ours: field, what is wrong, limit, remedy."""
    data = refused.data
    text = refused.message
    limit = data.get("limit")
    if limit not in (None, "") and str(limit) not in text:
        text += f" (allowed: {limit})"
    error(text, str(data.get("remedy") or ""))
    for more in (data.get("errors") or [])[1:]:
        if isinstance(more, Mapping):
            error(f"{more.get('field', '')}: {more.get('message', '')}", str(more.get("remedy") or ""))


def _flush_data() -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, styles: Mapping[str, str] | None = None) -> None:
    """Aligned columns. On a terminal cut to its width, coloured by cell text (NO_COLOR is heard); else whole and
    plain."""
    shown = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        head = [list(columns)] if any(columns) else []
        widths = [max((len(cell) for cell in column), default=0) for column in zip(*head, *shown, strict=True)]
        for row in [*head, *shown]:
            line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", show_header=any(columns))
    for at, column in enumerate(columns):
        is_last = at == len(columns) - 1
        drawn.add_column(column, no_wrap=not is_last, overflow="fold" if is_last else "ellipsis")
    for row in shown:
        drawn.add_row(*(Text(cell, style=(styles or {}).get(cell, "")) for cell in row))
    Console(highlight=False).print(drawn)


def colourful() -> bool:
    """Colours may go to stderr: it is a terminal that has them, and NO_COLOR is not set."""
    if not sys.stderr.isatty():
        return False
    from rich.console import Console

    seen = Console(stderr=True)
    return seen.is_terminal and not seen.no_color and seen.color_system is not None


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """How long ago, as people say it: 5s, 12m, 3h, 9d."""
    if moment is None:
        return ""
    seconds = max(0, int(((now or datetime.now(UTC)) - moment).total_seconds()))
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def bytes_shown(count: int) -> str:
    """1536 → 1.5k; binary units."""
    amount = float(count)
    for unit in ("", "k", "m", "g"):
        if amount < 1024 or unit == "g":
            break
        amount /= 1024
    return f"{count}" if not unit else f"{amount:.1f}".removesuffix(".0") + unit
