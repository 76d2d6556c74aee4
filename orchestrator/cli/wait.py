"""`carrel wait`: until it has ended; exits as it did."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from orchestrator.cli import console, endings, reaching, units


def wait(
    ctx: typer.Context,
    executions: Annotated[list[str], reaching.Refs],
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="Wait no longer than this, then exit 124.")
    ] = None,
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Wait for the end, print the outcome, exit with the process's own code (of several: the first that is not 0)."""
    until = time.monotonic() + units.duration_s(timeout) if timeout else None
    outage = reaching.Outage()
    code = 0
    with reaching.client(ctx, on_retry=outage.retry) as client:
        # All names are looked up first: a wrong one is said before anything is waited for.
        for found in [reaching.execution(client, ref) for ref in executions]:
            record = found.wait(None if until is None else max(0.0, until - time.monotonic()))
            outage.over()
            if record.outcome is None:
                console.note(f"{record.id} is still {record.state}")
                raise typer.Exit(endings.TIMEOUT)
            if as_json:
                console.json_line(record.model_dump_json())
            else:
                console.line(
                    f"{record.id} {endings.summary(record)}" if len(executions) > 1 else endings.summary(record)
                )
                said, remedy = endings.complaint(record)
                if said:
                    console.error(said, remedy)
            code = code or endings.exit_code(record)
    raise typer.Exit(code)


def register(app: typer.Typer) -> None:
    app.command("wait")(wait)
