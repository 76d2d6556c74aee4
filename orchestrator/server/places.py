"""Where in a history a reader wants to begin: what a query or header says, as a Cursor. Knows no store."""

from __future__ import annotations

from orchestrator.errors import BadInput
from orchestrator.events import Cursor
from orchestrator.execution import Execution

MOST_TAIL = 1_000_000


def place(execution: Execution, *, after: str | None, tail: int | None, last_event_id: str | None = None) -> Cursor:
    """`last_event_id` beats `after` (a browser that reconnects repeats its first URL), `after` beats `tail`; nothing =
    the start. `after` is a cursor, an event's number, or `now`. Raises BadInput."""
    said, field = (last_event_id, "Last-Event-ID") if last_event_id else (after, "after")
    if said:
        return _parse(execution, said, field)
    if tail is not None:
        return Cursor(execution.generation, max(0, execution.tail - tail))
    return Cursor(execution.generation, 0)


def _parse(execution: Execution, said: str, field: str) -> Cursor:
    if said == "now":
        return Cursor(execution.generation, execution.tail)
    if said.isascii() and said.isdigit() and len(said) <= 16:
        return Cursor(execution.generation, int(said))
    try:
        return Cursor.parse(said)
    except ValueError:
        raise BadInput(
            f"{said[:80]!r} is not a place in a history",
            field=field,
            limit="a cursor as events and records carry it, an event's number, or `now`",
            remedy="leave it out to read from the start",
        ) from None
