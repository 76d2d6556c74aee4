"""`carrel ls`: what is in a workspace, now or as a snapshot has it, and what changes there."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from orchestrator.cli import console, fetching, reaching
from orchestrator.cli.usage import UsageError

_MARKS = {"directory": "/", "symlink": "@", "other": "?"}


def ls(
    ctx: typer.Context,
    where: Annotated[str, typer.Argument(metavar="EXECUTION[:PATH]", help="Which, and below which directory.")],
    recursive: Annotated[bool, typer.Option("-R", "--recursive", help="With all below.")] = False,
    glob: Annotated[str, typer.Option("--glob", help="Only what fits, anywhere below: '**/*.py'.")] = "",
    name: Annotated[str, typer.Option("--name", help="Only names with this in them, or that fit it: 'test_*'.")] = "",
    snapshot: Annotated[str, typer.Option("--snapshot", help="As this snapshot has it.")] = "",
    watch: Annotated[bool, typer.Option("-w", "--watch", help="What changes below it, as it happens.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List files: mode, size, path. A directory ends with /, a link with @.

    With -w: `ready` when it begins (list then; also after a broken connection), `created`, `modified` and `removed`
    with their path, `overflow` when more happened than could be told, `ended` when the directory is gone.
    """
    if watch and (recursive or glob or name or snapshot):
        raise UsageError("-w takes no other choice: it tells everything below the directory")
    if name and (glob or recursive):
        raise UsageError("--name looks anywhere below already: leave -R and --glob out")
    ref, _, path = where.partition(":")
    with reaching.client(ctx) as client:
        files = reaching.execution(client, ref).files
        place = fetching.in_workspace(path)
        if watch:
            for change in files.watch(place):
                if as_json:
                    shown = change.path.encode(errors="surrogateescape").decode(errors="replace")
                    console.json_line(json.dumps({"change": change.change, "path": shown}))
                else:
                    console.line(f"{change.change} {console.printable(change.path)}".rstrip())
                sys.stdout.flush()
            return
        if name:
            found = files.search(name, path=place, snapshot=snapshot)
        else:
            found = files.list(place, recursive=recursive, glob=glob, snapshot=snapshot)
        if as_json:
            for one in found:
                console.json_line(one.model_dump_json(exclude_none=True))
            return
        rows = [
            (one.mode, console.bytes_shown(one.size_bytes), console.printable(one.path + _MARKS.get(one.kind, "")))
            for one in found
        ]
    console.table(("MODE", "SIZE", "PATH"), rows)


def register(app: typer.Typer) -> None:
    app.command("ls")(ls)
