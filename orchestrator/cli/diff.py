"""`carrel diff`: what changed in a workspace since a snapshot, or between two."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import console, reaching

_MARKS = {"added": "A", "removed": "D", "changed": "C"}


def diff(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    before: Annotated[str, typer.Argument(metavar="[SNAPSHOT]", help="Since which; none = its newest.")] = "",
    after: Annotated[str, typer.Argument(metavar="[SNAPSHOT]", help="Until which; none = now.")] = "now",
    path: Annotated[str, typer.Option("--path", help="Below this directory only.")] = "",
    patch: Annotated[bool, typer.Option("-p", "--patch", help="With unified diffs of texts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List what was added (A), removed (D) and changed (C)."""
    with reaching.client(ctx) as client:
        found = reaching.execution(client, execution).files.diff(before, after, path=path, patch=patch)
        for one in found:
            if as_json:
                console.json_line(one.model_dump_json(exclude_none=True))
                continue
            shown = console.printable(one.path)
            if one.patch:
                old = "/dev/null" if one.change == "added" else f"a/{shown}"
                new = "/dev/null" if one.change == "removed" else f"b/{shown}"
                text = "\n".join(console.printable(line) for line in one.patch.rstrip("\n").split("\n"))
                console.line(f"--- {old}\n+++ {new}\n{text}")
            else:
                console.line(f"{_MARKS[one.change]} {shown}")


def register(app: typer.Typer) -> None:
    app.command("diff")(diff)
