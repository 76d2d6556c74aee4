"""`carrel pause`: freeze it."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import console, reaching


def pause(
    ctx: typer.Context,
    executions: Annotated[list[str], reaching.Refs],
) -> None:
    """Freeze everything in its sandbox; it keeps its memory and its place."""
    with reaching.client(ctx) as client:
        for ref in executions:
            record = client.execution(reaching.name_of(client.address.url, ref)).pause()
            console.line(console.printable(ref if ref != "@last" else record.id))


def register(app: typer.Typer) -> None:
    app.command("pause")(pause)
