"""The calls of snapshots, forks and lineage as Requests; the others are in `requests`. Knows no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from orchestrator.client import answers
from orchestrator.client.exchange import Request
from orchestrator.client.spelling import HOLD_S, V1, at, body_of, new_id, only, prefer, spelled
from orchestrator.wire.snapshot import ForkAnswer, SnapshotAnswer, SnapshotListing, SnapshotReceipt, TreeAnswer


def snapshot(
    execution: str, *, name: str = "", labels: Mapping[str, str] | None = None, hold_s: float = 0.0, key: str = ""
) -> Request[SnapshotReceipt]:
    """One of it as it is now. With `hold_s` the answer waits for it (event snapshot.created)."""
    headers, data = body_of(only(name=name or None, labels=dict(labels) if labels else None))
    return Request(
        "POST",
        at(execution, "/snapshots"),
        answers.snapshot_receipt,
        headers={**headers, **prefer(hold_s), "idempotency-key": key or new_id()},
        body=data,
        hold_s=hold_s,
    )


def snapshots(execution: str = "", *, limit: int = 100, cursor: str = "") -> Request[SnapshotListing]:
    """A page of them, newest first: of one execution, or of all."""
    query = {"limit": str(limit), "execution": execution, "cursor": cursor}
    return Request(
        "GET",
        f"{V1}/snapshots",
        answers.snapshot_listing,
        query={name: value for name, value in query.items() if value},
    )


def snapshot_record(snapshot: str) -> Request[SnapshotAnswer]:
    """By id, unique prefix or name."""
    return Request("GET", f"{V1}/snapshots/{quote(snapshot, safe='')}", answers.snapshot)


def snapshot_export(snapshot: str) -> Request[None]:
    """All it holds as tar.zst. Read by downloading.py: it cannot be continued, so a line that breaks is an error."""
    return Request("GET", f"{V1}/snapshots/{quote(snapshot, safe='')}/export", answers.nothing)


def snapshot_words(
    snapshot: str, *, name: str | None = None, labels: Mapping[str, str] | None = None
) -> Request[SnapshotAnswer]:
    """Another name ("" = none), other labels; None = as they are."""
    headers, data = body_of(only(name=name, labels=None if labels is None else dict(labels)))
    path = f"{V1}/snapshots/{quote(snapshot, safe='')}"
    return Request("PATCH", path, answers.snapshot, headers=headers, body=data)


def snapshot_delete(snapshot: str) -> Request[None]:
    """Remove it. A repeat that finds nothing is the first one's success."""
    return Request("DELETE", f"{V1}/snapshots/{quote(snapshot, safe='')}", answers.nothing)


def fork(execution: str, body: Mapping[str, Any], *, key: str = "") -> Request[ForkAnswer]:
    """`body` as POST …/fork takes it, or as `spelled` does. Held for the cut of one that runs."""
    headers, data = body_of(spelled(body))
    return Request(
        "POST",
        at(execution, "/fork"),
        answers.forks,
        headers={**headers, **prefer(HOLD_S), "idempotency-key": key or new_id()},
        body=data,
        hold_s=HOLD_S,
    )


def rewind(execution: str, snapshot: str, *, key: str = "") -> Request[ForkAnswer]:
    """Held for the end of what runs."""
    headers, data = body_of({"snapshot": snapshot})
    return Request(
        "POST",
        at(execution, "/rewind"),
        answers.forks,
        headers={**headers, "idempotency-key": key or new_id()},
        body=data,
        hold_s=3600 + HOLD_S,  # its own grace, at most an hour
    )


def tree(execution: str) -> Request[TreeAnswer]:
    """Where it comes from and what came of it."""
    return Request("GET", at(execution, "/tree"), answers.tree)
