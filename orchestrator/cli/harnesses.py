"""`carrel harnesses`: which programs can do a task."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import console, reaching


def harnesses(ctx: typer.Context, as_json: Annotated[bool, reaching.Json] = False) -> None:
    """List what --harness may name. One that resumes goes on by itself after a crash of its sandbox."""
    with reaching.client(ctx) as client:
        found = client.harnesses()
    if as_json:
        for harness in found:
            console.json_line(harness.model_dump_json())
        return
    rows = [
        (one.name, "yes" if one.resumes else "", one.api or "", one.image or "", one.about)
        for one in sorted(found, key=lambda harness: harness.name)
    ]
    console.table(("NAME", "RESUMES", "API", "IMAGE", "ABOUT"), rows)


def register(app: typer.Typer) -> None:
    app.command("harnesses")(harnesses)
