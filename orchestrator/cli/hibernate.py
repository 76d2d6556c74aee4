"""`carrel hibernate`: put it to sleep."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from orchestrator.cli import console, reaching, units

HOLD_S = 60.0


def hibernate(
    ctx: typer.Context,
    executions: Annotated[list[str], reaching.Refs],
    timeout: Annotated[
        str, typer.Option("--timeout", metavar="DURATION", help="Wait no longer than this, then exit 124.")
    ] = "10m",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until it sleeps.")] = False,
) -> None:
    """Snapshot it and give its memory and processes back. A message, `carrel resume` or `carrel exec` wakes it, on this
    host or another. Prints what was named, once it sleeps."""
    until = time.monotonic() + units.duration_s(timeout)
    outage = reaching.Outage()
    code = 0
    with reaching.client(ctx, on_retry=outage.retry) as client:
        found = [(ref, client.execution(reaching.name_of(client.address.url, ref))) for ref in executions]
        asked = [(ref, one, one.hibernate()) for ref, one in found]
        for ref, one, record in asked:
            while not no_wait and record.state != "HIBERNATED" and (left_s := until - time.monotonic()) > 0:
                if record.wants.hibernate is None and record.state != "HIBERNATING":
                    break  # it ended, or a message came first
                one.history(after=record.cursor, hold_s=min(left_s, HOLD_S))
                record = one.refresh()
                outage.over()
            if no_wait or record.state == "HIBERNATED":
                console.line(console.printable(ref if ref != "@last" else record.id))
            else:
                console.note(f"{record.id} is {record.state}: see `carrel events {record.id}`")
                code = 124
    raise typer.Exit(code)


def register(app: typer.Typer) -> None:
    app.command("hibernate")(hibernate)
