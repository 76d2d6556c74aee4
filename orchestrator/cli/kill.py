"""`carrel kill`: a cancel without grace."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import reaching
from orchestrator.cli.stop import end


def kill(
    ctx: typer.Context,
    executions: Annotated[list[str], reaching.Refs],
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the end.")] = False,
) -> None:
    """End it at once: SIGKILL of everything in its sandbox."""
    end(ctx, executions, grace_s=0.0, wait=not no_wait)


def register(app: typer.Typer) -> None:
    app.command("kill")(kill)
