"""How long a request may be held, and holding it: `Prefer: wait=N` (RFC 7240) and `wait_s`. Knows no route."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Final

from starlette.requests import Request

from orchestrator.events import Cursor
from orchestrator.history import Page
from orchestrator.server.parts import Parts
from orchestrator.server.viewers import beating

MOST_WAIT_S: Final = 60.0
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d+(?:\.\d+)?)\"?", re.IGNORECASE)


def preferred_wait_s(request: Request) -> float:
    """Of the Prefer header; 0 where it asks for none. A preference is not a demand: more than we hold is cut."""
    for header in request.headers.getlist("prefer"):
        if found := _WAIT.search(header[:200]):
            return min(float(found[1]), MOST_WAIT_S)
    return 0.0


@contextlib.asynccontextmanager
async def _following(parts: Parts, execution_id: str, after: Cursor) -> AsyncIterator[AsyncIterator[Page | None]]:
    pages = beating(parts.history.follow(execution_id, after), stopping=parts.stopping, beat_s=MOST_WAIT_S)
    try:
        yield pages
    finally:
        await pages.aclose()  # type: ignore[attr-defined]


async def first_page(
    parts: Parts, execution_id: str, after: Cursor, *, wait_s: float, enough: Callable[[Page], bool]
) -> Page | None:
    """The first page from `after` on that is `enough`, waited for at most `wait_s`; None when none came. Errors as
    History.follow."""
    parts.holding += 1
    try:
        async with asyncio.timeout(wait_s), _following(parts, execution_id, after) as pages:
            async for page in pages:
                if page is not None and enough(page):
                    return page
    except TimeoutError:
        return None
    finally:
        parts.holding -= 1
    return None  # this process stops
