"""`carrel resume`: thaw it, or wake it."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import console, reaching


def resume(
    ctx: typer.Context,
    executions: Annotated[list[str], reaching.Refs],
) -> None:
    """Thaw a paused execution; wake one that sleeps, with its files, its state and its messages."""
    with reaching.client(ctx) as client:
        for ref in executions:
            record = client.execution(reaching.name_of(client.address.url, ref)).resume()
            console.line(console.printable(ref if ref != "@last" else record.id))


def register(app: typer.Typer) -> None:
    app.command("resume")(resume)
