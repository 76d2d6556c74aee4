"""`carrel rm`: away with record, history and files."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import console, reaching
from orchestrator.errors import NotFound


def rm(
    ctx: typer.Context,
    executions: Annotated[list[str], reaching.Refs],
    force: Annotated[
        bool, typer.Option("-f", "--force", help="End it first where it has not ended; what is not there is no error.")
    ] = False,
) -> None:
    """Remove ended executions: record, history and files. Prints what was named."""
    with reaching.client(ctx) as client:
        for ref in executions:
            try:
                found = reaching.execution(client, ref)
                found.delete(force=force)
            except NotFound:
                if not force:
                    raise
                continue
            console.line(console.printable(ref if ref != "@last" else found.id))


def register(app: typer.Typer) -> None:
    app.command("rm")(rm)
