"""`carrel snapshot create|ls|inspect|label|export|rm`: points of an execution one can fork, rewind or look into."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import console, output, reaching, units
from orchestrator.cli.usage import UsageError
from orchestrator.client import uploads

if TYPE_CHECKING:
    from orchestrator.client.nouns import SnapshotAnswer

snapshot = typer.Typer(rich_markup_mode=None, help="Take, list, name and remove points one can fork or rewind to.")

Snapshot = typer.Argument(
    metavar="SNAPSHOT",
    help="An id, a unique prefix of one, or a name.",
    show_default=False,
    autocompletion=reaching.complete_snapshot,
)
Snapshots = typer.Argument(
    metavar="SNAPSHOT…",
    help="Ids, unique prefixes or names.",
    show_default=False,
    autocompletion=reaching.complete_snapshot,
)
Labels = typer.Option("-l", "--label", metavar="K=V", help="A label.")


@snapshot.command("create")
def create(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    name: Annotated[str, typer.Option("--name", help="A name of its own: it stays until it is removed.")] = "",
    label: Annotated[list[str] | None, Labels] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="Wait no longer than this for it.")
    ] = None,
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Take one now: files, harness state and history as one cut, while it works on. Prints its id once it is there. Of
    what sleeps or has ended: its last."""
    outage = reaching.Outage()
    with reaching.client(ctx, on_retry=outage.retry) as client:
        taken = client.execution(reaching.name_of(client.address.url, execution)).snapshot(
            name=name,
            labels=units.pairs(label or [], "-l"),
            timeout_s=units.duration_s(timeout) if timeout else None,
        )
    console.line(taken.model_dump_json() if as_json else taken.id)


@snapshot.command("ls")
def ls(
    ctx: typer.Context,
    execution: Annotated[str | None, reaching.OptionalRef] = None,
    last: Annotated[int | None, typer.Option("-n", "--last", min=1, metavar="N", help="Only the last N.")] = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only ids.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as the API has them.")] = False,
) -> None:
    """List them, newest first: of one execution, or all. SEQ is the last event of its history that is in it."""
    with reaching.client(ctx) as client:
        of = reaching.name_of(client.address.url, execution) if execution else ""
        found = islice(client.snapshots(of), last)
        if as_json or quiet:
            for one in found:
                console.line(one.id if quiet else one.model_dump_json())
            return
        rows = [_row(one, with_execution=not of) for one in found]
    columns = ["ID", "NAME", "WHY", "AGE", "SEQ", "SIZE", *([] if of else ["EXECUTION"])]
    console.table(columns, rows)


def _row(one: SnapshotAnswer, *, with_execution: bool) -> tuple[str, ...]:
    size = console.bytes_shown(one.size_bytes) if one.size_bytes else "-"
    of = (one.execution_id,) if with_execution else ()
    return one.id, one.name, one.why, console.age(one.created_at), str(one.cut.seq), size, *of


@snapshot.command("inspect")
def inspect(
    ctx: typer.Context,
    snapshots: Annotated[list[str], Snapshots],
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Show records: for people on a terminal, as JSON into a pipe or with --json."""
    with reaching.client(ctx) as client:
        for ref in snapshots:
            shape = client.snapshot(ref).model_dump(mode="json")
            if as_json or not sys.stdout.isatty():
                console.document(shape)
                continue
            cut = shape.pop("cut")
            shape["labels"] = ", ".join(f"{key}={value}" for key, value in shape["labels"].items())
            shape |= {f"cut.{key}": value for key, value in cut.items()}
            console.table(("", ""), [(key, str(value)) for key, value in shape.items() if value not in (None, "")])


@snapshot.command("label")
def label(
    ctx: typer.Context,
    which: Annotated[str, Snapshot],
    name: Annotated[str | None, typer.Option("--name", help='Another name; "" takes it away.')] = None,
    labels: Annotated[list[str] | None, Labels] = None,
) -> None:
    """Give it another name or other labels. One with a name stays until it is removed."""
    if name is None and labels is None:
        raise UsageError("give --name or -l")
    with reaching.client(ctx) as client:
        changed = client.label_snapshot(which, name=name, labels=units.pairs(labels, "-l") if labels else None)
    console.line(changed.id)


@snapshot.command("export")
def export(
    ctx: typer.Context,
    which: Annotated[str, Snapshot],
    target: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="A file, whole or not at all; - is stdout.")
    ],
) -> None:
    """All it holds as one tar.zst that any tar reads. `carrel run --from-archive FILE` begins with it, here or in
    another installation."""
    if target == "-" and sys.stdout.isatty():
        raise UsageError("an archive is nothing for a terminal: give -o FILE, or a pipe")
    with reaching.client(ctx) as client:
        if target == "-":
            for piece in client.export_snapshot(which):
                output.write_all(1, piece)
            return
        console.line(str(uploads.save(client.export_snapshot(which), Path(target))))


@snapshot.command("rm")
def rm(ctx: typer.Context, snapshots: Annotated[list[str], Snapshots]) -> None:
    """Remove them; what was begun from them stays as it is. Prints what was named."""
    with reaching.client(ctx) as client:
        for ref in snapshots:
            client.delete_snapshot(ref)
            console.line(console.printable(ref))


def register(app: typer.Typer) -> None:
    app.add_typer(snapshot, name="snapshot")
