"""Waiting for the end of an execution, over restarts of the server. Knows no network."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.client import calls, requests
from orchestrator.client.exchange import Call
from orchestrator.client.patience import Patience
from orchestrator.client.spelling import HOLD_S
from orchestrator.wire.record import Record


def wait_until_ended(
    execution: str, timeout_s: float | None, *, patience: Patience, clock: Callable[[], float], url: str
) -> Call[Record]:
    """The record once it has an outcome; as it is when `timeout_s` is over first (None = no limit)."""
    until = None if timeout_s is None else clock() + timeout_s
    while True:
        left_s = HOLD_S if until is None else max(0.0, until - clock())
        request = requests.hold(execution, hold_s=left_s)
        record = yield from calls.call(request, patience, clock, url)
        if record.outcome is not None or (until is not None and clock() >= until):
            return record
