"""`carrel intents`: what a harness said it would do, before it did it, and what came of it."""

from __future__ import annotations

import shlex
from itertools import islice
from typing import Annotated

import typer

from orchestrator.cli import console, reaching
from orchestrator.cli.usage import UsageError

STATES = ("open", "done", "failed", "in_doubt", "retry")
STYLES = {"in_doubt": "bold yellow", "failed": "red", "done": "green", "open": "dim"}
SUMMARY_CHARS = 60


def intents(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    state: Annotated[list[str] | None, typer.Option("--state", help=f"Only these: {', '.join(STATES)}.")] = None,
    in_doubt: Annotated[bool, typer.Option("--in-doubt", help="Only those a person has to settle.")] = False,
    last: Annotated[int | None, typer.Option("-n", "--first", min=1, metavar="N", help="At most N.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as the API has them.")] = False,
) -> None:
    """List the journal of intents, in the order they were begun. One in doubt may have been done wholly, partly or not
    at all; it is not run again until somebody says so (carrel settle)."""
    states = [*(state or []), *(["in_doubt"] if in_doubt else [])]
    for one in states:
        if one not in STATES:
            raise UsageError(f"--state {one!r} is none of {', '.join(STATES)}")
    with reaching.client(ctx) as client:
        found = reaching.execution(client, execution)
        listed = islice(found.intents(states=states), last)
        if as_json:
            for intent in listed:
                console.json_line(intent.model_dump_json())
            return
        rows = [
            (
                str(intent.n),
                str(intent.state),
                intent.kind,
                str(intent.effect),
                str(intent.attempt),
                intent.key,
                intent.summary[:SUMMARY_CHARS],
            )
            for intent in listed
        ]
    console.table(("N", "STATE", "KIND", "EFFECT", "ATTEMPT", "KEY", "SUMMARY"), rows, styles=STYLES)
    doubtful = [row[5] for row in rows if row[1] == "in_doubt"]
    if doubtful:
        console.note(f"look whether it was done, then: carrel settle {execution} {shlex.quote(doubtful[0])} done")


def register(app: typer.Typer) -> None:
    app.command("intents")(intents)
