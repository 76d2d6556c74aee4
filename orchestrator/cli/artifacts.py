"""`carrel artifacts ls|get`: what an execution left in /workspace/artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli import console, fetching, output, reaching
from orchestrator.errors import NotFound

artifacts = typer.Typer(rich_markup_mode=None, help="List and get what it left in /workspace/artifacts.")


@artifacts.command("ls")
def ls(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List them: size, digest, path."""
    with reaching.client(ctx) as client:
        found = reaching.execution(client, execution).artifacts.list()
    if as_json:
        for one in found:
            console.json_line(one.model_dump_json(exclude_none=True))
        return
    rows = [(console.bytes_shown(one.size_bytes), (one.sha256 or "")[:12], one.path) for one in found]
    console.table(("SIZE", "SHA256", "PATH"), rows)
    for one in found:
        if one.refused:
            console.note(f"{console.printable(one.path)} was not kept: {console.printable(one.refused)}")


@artifacts.command("get")
def get(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    paths: Annotated[list[str] | None, typer.Argument(metavar="[PATH…]", help="Which; none = all.")] = None,
    to: Annotated[Path, typer.Option("-o", "--output", help="Into this directory; - = stdout.")] = Path(),
) -> None:
    """Get them, under their own paths. Prints what was written."""
    with reaching.client(ctx) as client:
        found = reaching.execution(client, execution)
        wanted = [path.removeprefix("/workspace/artifacts/") for path in paths or []]
        for path in wanted or [fetching.exact(one) for one in found.artifacts.list() if not one.refused]:
            if str(to) == "-":
                for piece in found.artifacts.chunks(path):
                    output.write_all(1, piece)
                continue
            if not path:
                raise NotFound("an artifact without a name", kind="artifact", id=path)
            to.mkdir(parents=True, exist_ok=True)
            place = fetching.inside(to, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            console.line(console.printable(str(found.artifacts.download(path, place))))


def register(app: typer.Typer) -> None:
    app.add_typer(artifacts, name="artifacts")
