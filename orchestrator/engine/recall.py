"""What only the history remembers: read backwards from its end, a page at a time, until it is found.

For the rare moments after a crash, when a new owner has to know why an execution is being stopped or where an
attempt's files came from. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from orchestrator.events import Cursor, Event
from orchestrator.execution import Execution
from orchestrator.history import History

_PAGE: Final = 512


async def last_event(
    history: History, execution: Execution, tail: int, wanted: Callable[[Event], bool]
) -> Event | None:
    """The newest event with seq <= `tail` that is `wanted`, or None."""
    before = tail
    while before > 0:
        after = max(before - _PAGE, 0)
        found: Event | None = None
        seen = after
        while seen < before:  # a page may be cut short by its bytes
            page = await history.read(execution.id, Cursor(execution.generation, seen), limit=before - seen)
            if not page.events:
                break
            for event in page.events:
                if event.seq <= before and wanted(event):
                    found = event
            seen = page.events[-1].seq
        if found is not None:
            return found
        before = after
    return None
