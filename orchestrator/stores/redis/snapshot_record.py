"""A snapshot's record as Redis keeps it, to and from the noun. Knows no command and no script.

Absent fields mean their default, unknown ones are passed over, as in `record`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

from orchestrator.clock import from_ms, to_ms
from orchestrator.errors import BadInput
from orchestrator.snapshots import Cut, Snapshot, Why
from orchestrator.stores.redis.record import dumps

NAME_BYTES: Final = 128
ID_BYTES: Final = 64
_CUT: Final = ("attempt", "seq", "src", "inbox", "intents")


def of_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """As the script that writes it wants it. Whose it is, the script knows. Raises BadInput(field="snapshot")."""
    check_id(snapshot.id)
    check_name(snapshot.name)
    fields = {
        **{name: str(value) for name, value in asdict(snapshot.cut).items()},
        "why": snapshot.why.value,
        "sandbox_id": snapshot.sandbox_id,
        "host": snapshot.host,
        "store": snapshot.store,
        "created": str(to_ms(snapshot.created_at)),
        "name": snapshot.name,
        "labels": dumps(dict(snapshot.labels)) if snapshot.labels else "",
        "parent": snapshot.parent,
        **measures(snapshot.digest, snapshot.size_bytes, snapshot.files),
        "archived": "1" if snapshot.archived else "",
    }
    flat = [item for name, value in fields.items() if value for item in (name, value)]
    return {"id": snapshot.id, "name": snapshot.name, "host": snapshot.host, "fields": flat}


def measures(digest: str, size_bytes: int, files: int) -> dict[str, str]:
    """What is computed after the cut. Numbers are text: JSON in the scripts would round a large one."""
    return {"digest": digest, "size_bytes": str(size_bytes), "files": str(files)}


def to_snapshot(snapshot_id: str, got: Mapping[str, bytes]) -> Snapshot:
    """The noun. `got` holds at least execution and why."""

    def text(name: str) -> str:
        return got.get(name, b"").decode()

    return Snapshot(
        id=snapshot_id,
        execution_id=text("execution"),
        tenant=text("tenant"),
        why=Why(text("why")),
        cut=Cut(*(int(got.get(name) or 0) for name in _CUT)),
        sandbox_id=text("sandbox_id"),
        host=text("host"),
        store=text("store"),
        created_at=from_ms(int(got.get("created") or 0)),
        name=text("name"),
        labels=json.loads(got["labels"]) if got.get("labels") else {},
        parent=text("parent"),
        size_bytes=int(got.get("size_bytes") or 0),
        files=int(got.get("files") or 0),
        digest=text("digest"),
        archived=text("archived") == "1",
    )


def check_id(snapshot_id: str) -> None:
    """It is part of a key, and of a path on every host. Raises BadInput(field="snapshot")."""
    rest = snapshot_id.removeprefix("snp_")
    if rest == snapshot_id or not (rest.isascii() and rest.replace("_", "").isalnum() and len(rest) <= ID_BYTES):
        raise BadInput(
            f"{snapshot_id!r} cannot be a snapshot's id",
            field="snapshot",
            limit=f"snp_ and 1 to {ID_BYTES} of a-z A-Z 0-9 _",
        )


def check_name(name: str) -> None:
    """Raises BadInput(field="name"). "" = none."""
    if len(name.encode(errors="replace")) > NAME_BYTES or not name.isprintable() or name.startswith("snp_"):
        raise BadInput(
            f"{name!r} cannot be a snapshot's name",
            field="name",
            limit=f"at most {NAME_BYTES} bytes of printable UTF-8, not beginning with snp_",
            remedy="choose another",
        )
