"""Waking what sleeps, for a request that needs its processes. Knows no route."""

from __future__ import annotations

import asyncio
import secrets
from typing import Final

from orchestrator.errors import Conflict
from orchestrator.execution import Execution, PauseWant
from orchestrator.lifecycle import ExecutionState
from orchestrator.server.cuts import late, moved
from orchestrator.server.parts import Parts

_S = ExecutionState
_ASLEEP: Final = frozenset({_S.HIBERNATING, _S.HIBERNATED})


async def awake(parts: Parts, execution: Execution) -> Execution:
    """The execution, running again where it slept or was on its way back; any other as it is. Raises Unavailable when
    it does not run after `wake_wait_s`, Conflict when it ended meanwhile."""
    wait_s = parts.settings.wake_wait_s
    if not _comes_back(execution):
        return execution
    parts.metrics.wakes.inc()
    try:
        async with asyncio.timeout(wait_s):
            while _comes_back(execution):
                if execution.state is _S.HIBERNATED:
                    try:
                        execution = await parts.executions.want(
                            execution.id, PauseWant(secrets.token_hex(16), paused=False)
                        )
                        continue
                    except Conflict:
                        pass  # ended meanwhile: the record says so
                else:
                    await moved(parts, execution, wait_s=wait_s)
                execution = await parts.executions.get(execution.id)
    except TimeoutError:
        raise late(execution, f"does not run {wait_s:g} s after it was woken") from None
    if execution.ended:
        raise Conflict(
            f"{execution.id} ended instead of waking",
            state=execution.state.value,
            remedy="`fork` begins a new one from its last snapshot",
        )
    return execution


def _comes_back(execution: Execution) -> bool:
    """Asleep, or between a sleep (or a loss) and its next attempt."""
    first = execution.attempt < (1 if execution.state is _S.QUEUED else 2)
    return execution.state in _ASLEEP or (execution.state in {_S.QUEUED, _S.STARTING} and not first)
