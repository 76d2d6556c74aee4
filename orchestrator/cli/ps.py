"""`carrel ps`: what is there, newest first."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import console, endings, money, reaching, units

if TYPE_CHECKING:
    from orchestrator.client.nouns import Record

LIVING = ("QUEUED", "STARTING", "RUNNING", "PAUSED", "HIBERNATING", "HIBERNATED", "STOPPING")
STYLES = {"RUNNING": "green", "SUCCEEDED": "green", "PAUSED": "yellow", "QUEUED": "dim", "HIBERNATED": "dim"}
TASK_CHARS = 60
PAGE = 200


def ps(
    ctx: typer.Context,
    everything: Annotated[bool, typer.Option("-a", "--all", help="Those that have ended too.")] = False,
    last: Annotated[
        int | None, typer.Option("-n", "--last", min=1, metavar="N", help="The last N, ended or not.")
    ] = None,
    state: Annotated[list[str] | None, typer.Option("--state", help="Only in this state.")] = None,
    outcome: Annotated[list[str] | None, typer.Option("--outcome", help="Only ended so: FAILED, LOST…")] = None,
    label: Annotated[
        list[str] | None, typer.Option("-l", "--label", metavar="K=V", help="Only with this label.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Only with this name.")] = "",
    harness: Annotated[str, typer.Option("--harness", help="Only of this harness.")] = "",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only ids.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as the API has them.")] = False,
) -> None:
    """List executions, newest first: those that have not ended, or with -a all."""
    states = [one.upper() for one in state or []]
    outcomes = [one.upper() for one in outcome or []]
    if not (everything or last or states or outcomes):
        states = list(LIVING)
    with reaching.client(ctx) as client:
        found = islice(
            client.list(
                states=states,
                outcomes=outcomes,
                labels=units.pairs(label or [], "-l"),
                name=name,
                harness=harness,
                limit=min(last or PAGE, PAGE),
            ),
            last,
        )
        if as_json or quiet:
            for record in found:
                if quiet:
                    console.line(record.id)
                else:
                    console.json_line(record.model_dump_json())
            return
        records = list(found)
        columns = ["ID", "NAME", "STATE", "AGE", "TASK"]
        if any(money.spent(record.spend) for record in records):
            columns.insert(4, "SPENT")
        console.table(columns, [_row(record, with_spend=len(columns) > 5) for record in records], styles=STYLES)


def _row(record: Record, *, with_spend: bool) -> tuple[str, ...]:
    what = " ".join(record.command) or record.task
    state = endings.summary(record)
    spent = (money.spent(record.spend),) if with_spend else ()
    return record.id, record.name, state, console.age(record.created_at), *spent, what.strip()[:TASK_CHARS]


def register(app: typer.Typer) -> None:
    app.command("ps")(ps)
