"""`carrel doctor`: what is there, what is missing, how to get it, as a table or JSON. Looks itself at nothing."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator import configuration, diagnosis
from orchestrator.checks import Check, Verdict
from orchestrator.errors import BadInput

_STYLE = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.MISSING: "bold red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object: ok, checks.")] = False,
) -> None:
    """Say what this host has, what it lacks and how to get it. Exit code 1 when something is missing."""
    try:
        checks = list(diagnosis.examine(configuration.load()))
    except BadInput as failure:
        checks = [diagnosis.broken_settings(failure)]
    well = diagnosis.is_well(checks)
    if as_json:
        typer.echo(json.dumps({"ok": well, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        show(checks)
    raise typer.Exit(0 if well else 1)


def show(checks: list[Check]) -> None:
    """The table, on stdout; remedies below what they mend. Into a pipe or a file: one line per fact, not folded."""
    if not sys.stdout.isatty():
        for check in checks:
            typer.echo(f"{check.name:13} {check.verdict:7}  {check.seen}")
            if check.remedy:
                typer.echo(f"{'':13} {'':7}  → {check.remedy}")
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in ("name", "verdict", "seen"):
        table.add_column(column, overflow="fold")
    for check in checks:
        said = check.seen + (f"\n→ {check.remedy}" if check.remedy else "")
        table.add_row(check.name, f"[{_STYLE[check.verdict]}]{check.verdict}[/]", escape(said))
    Console(highlight=False).print(table)


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


if __name__ == "__main__":
    typer.run(doctor)
