"""`carrel stop` and what `carrel kill` shares with it: a cancel, and waiting for its end."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import console, reaching, units
from orchestrator.errors import Conflict


def stop(
    ctx: typer.Context,
    executions: Annotated[list[str], reaching.Refs],
    grace: Annotated[
        str | None, typer.Option("-t", "--time", metavar="DURATION", help="Between SIGTERM and SIGKILL; else its own.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait for the end.")] = False,
) -> None:
    """End it: SIGTERM, its grace, SIGKILL of everything in its sandbox. Prints what was named, once it has ended."""
    end(ctx, executions, grace_s=units.duration_s(grace) if grace else None, wait=not no_wait)


def end(ctx: typer.Context, refs: list[str], *, grace_s: float | None, wait: bool) -> None:
    """Cancel all, then wait for all."""
    outage = reaching.Outage()
    with reaching.client(ctx, on_retry=outage.retry) as client:
        cancelled = []
        for ref in refs:
            found = reaching.execution(client, ref)
            try:
                found.cancel(grace_s=grace_s)
            except Conflict:
                if not found.refresh().ended:
                    raise
            cancelled.append((ref, found))
        for ref, found in cancelled:
            if wait:
                found.wait()
                outage.over()
            console.line(console.printable(ref if ref != "@last" else found.id))


def register(app: typer.Typer) -> None:
    app.command("stop")(stop)
