"""`carrel inspect`: one record, whole."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from orchestrator.cli import console, endings, money, reaching


def inspect(
    ctx: typer.Context,
    executions: Annotated[list[str], reaching.Refs],
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Show records: for people on a terminal, as JSON into a pipe or with --json."""
    with reaching.client(ctx) as client:
        for ref in executions:
            found = client.execution(reaching.name_of(client.address.url, ref))
            record = found.refresh(disk=True)
            shape = record.model_dump(mode="json")
            if as_json or not sys.stdout.isatty():
                console.document(shape)
                continue
            shape["outcome"] = endings.summary(record) if record.outcome else None
            shape["egress"] = ", ".join(record.egress.allow)
            shape["budget"] = money.budget(record)
            if disk := record.disk:
                limit = f" of {console.bytes_shown(disk.limit_bytes)}" if disk.limit_bytes else ", no limit"
                shape["disk"] = f"{console.bytes_shown(disk.used_bytes)}{limit}"
            del shape["spend"]
            console.table(
                ("", ""), [(key, _shown(value)) for key, value in shape.items() if value not in (None, "", [], {})]
            )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect)
