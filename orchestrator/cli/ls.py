"""`carrel ls`: what is in a workspace, now or as a snapshot has it."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import console, fetching, reaching

_MARKS = {"directory": "/", "symlink": "@", "other": "?"}


def ls(
    ctx: typer.Context,
    where: Annotated[str, typer.Argument(metavar="EXECUTION[:PATH]", help="Which, and below which directory.")],
    recursive: Annotated[bool, typer.Option("-R", "--recursive", help="With all below.")] = False,
    glob: Annotated[str, typer.Option("--glob", help="Only what fits, anywhere below: '**/*.py'.")] = "",
    snapshot: Annotated[str, typer.Option("--snapshot", help="As this snapshot has it.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List files: mode, size, path. A directory ends with /, a link with @."""
    ref, _, path = where.partition(":")
    with reaching.client(ctx) as client:
        files = reaching.execution(client, ref).files
        place = fetching.in_workspace(path)
        found = files.list(place, recursive=recursive, glob=glob, snapshot=snapshot)
        if as_json:
            for one in found:
                console.line(one.model_dump_json(exclude_none=True))
            return
        rows = [
            (one.mode, console.bytes_shown(one.size_bytes), console.printable(one.path + _MARKS.get(one.kind, "")))
            for one in found
        ]
    console.table(("MODE", "SIZE", "PATH"), rows)


def register(app: typer.Typer) -> None:
    app.command("ls")(ls)
