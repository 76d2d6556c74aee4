"""Waiting for a snapshot that was asked for, over restarts of the server. Knows no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from orchestrator.client import calls, snapshot_requests
from orchestrator.client.exchange import Call
from orchestrator.client.patience import Patience
from orchestrator.client.spelling import HOLD_S, new_id
from orchestrator.errors import Unavailable
from orchestrator.wire.snapshot import SnapshotAnswer


def take_snapshot(
    execution: str,
    *,
    name: str,
    labels: Mapping[str, str] | None,
    key: str,
    timeout_s: float | None,
    patience: Patience,
    clock: Callable[[], float],
    url: str,
) -> Call[SnapshotAnswer]:
    """The snapshot once it is there. Asked for under one key, so that asking again is waiting on. Raises Unavailable
    when it is not there after `timeout_s` (None = no limit); it may come later."""
    until = None if timeout_s is None else clock() + timeout_s
    key = key or new_id()
    while True:
        left_s = HOLD_S if until is None else max(0.0, min(HOLD_S, until - clock()))
        request = snapshot_requests.snapshot(execution, name=name, labels=labels, hold_s=left_s, key=key)
        receipt = yield from calls.call(request, patience, clock, url)
        if receipt.snapshot is not None:
            return receipt.snapshot
        if until is not None and clock() >= until:
            raise Unavailable(
                f"snapshot {receipt.id} is not there after {timeout_s:g} s",
                snapshot=receipt.id,
                remedy="it may still come: look for it with `carrel snapshot ls`",
            )
