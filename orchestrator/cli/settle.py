"""`carrel settle`: a person's decision on an intent in doubt."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from orchestrator.cli import console, reaching
from orchestrator.cli.usage import UsageError


def settle(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    key: Annotated[str, typer.Argument(metavar="KEY", help="As `carrel intents` shows it.", show_default=False)],
    decision: Annotated[
        Literal["retry", "done", "fail"],
        typer.Argument(help="Run it again; it was done; count it as failed.", show_default=False),
    ],
    result: Annotated[str, typer.Option("--result", metavar="TEXT", help="What it came to, for done and fail.")] = "",
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Say what is to become of something that may have been done wholly, partly or not at all. A harness that waits for
    it goes on; one that asks later hears it then."""
    if result and decision == "retry":
        raise UsageError("--result is what came of it: it goes with done or fail")
    with reaching.client(ctx) as client:
        settled = reaching.execution(client, execution).settle(key, decision, result=result)
    if as_json:
        console.json_line(settled.model_dump_json())
    else:
        console.line(f"{console.printable(settled.key)}: {settled.state}")


def register(app: typer.Typer) -> None:
    app.command("settle")(settle)
