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
            found = reaching.execution(client, ref)
            assert found.record is not None
            shape = found.record.model_dump(mode="json")
            if as_json or not sys.stdout.isatty():
                console.document(shape)
                continue
            shape["outcome"] = endings.summary(found.record) if found.record.outcome else None
            shape["egress"] = ", ".join(found.record.egress.allow)
            shape["budget"] = money.budget(found.record)
            del shape["spend"]
            console.table(
                ("", ""), [(key, _shown(value)) for key, value in shape.items() if value not in (None, "", [], {})]
            )


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def register(app: typer.Typer) -> None:
    app.command("inspect")(inspect)
