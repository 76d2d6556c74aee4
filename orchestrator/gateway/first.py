"""Waiting for whichever of several things comes first. Knows not what they are."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def first(*waits: Coroutine[Any, Any, Any] | asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Returns when one is done, or after `timeout_s`. Coroutines that are not done are cancelled; futures are left
    alone: they are others'. Which one it was, the caller sees for itself."""
    own = {asyncio.create_task(one) for one in waits if asyncio.iscoroutine(one)}
    others = {one for one in waits if isinstance(one, asyncio.Future)}
    try:
        await asyncio.wait(own | others, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in own:
            task.cancel()
