"""`carrel rewind`: back to a snapshot, under the same name."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator import profile
from orchestrator.cli import console, reaching


def rewind(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    snapshot: Annotated[
        str,
        typer.Argument(
            metavar="SNAPSHOT",
            help="An id, a unique prefix of one, or a name.",
            show_default=False,
            autocompletion=reaching.complete_snapshot,
        ),
    ],
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Go on from a snapshot: a fork of it takes the name and the labels over. One that has not ended is ended first;
    what it did since stays in its history. Prints the new id."""
    outage = reaching.Outage()
    with reaching.client(ctx, on_retry=outage.retry) as client:
        made = client.execution(reaching.name_of(client.address.url, execution)).rewind(snapshot)
        profile.remember(client.address.url, made.id)
    assert made.record is not None
    console.line(made.record.model_dump_json() if as_json else made.id)


def register(app: typer.Typer) -> None:
    app.command("rewind")(rewind)
