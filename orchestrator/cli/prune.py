"""`carrel prune`: what is over goes; shown and asked first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from orchestrator.cli import console, reaching, units
from orchestrator.cli.usage import UsageError
from orchestrator.client.nouns import PruneAnswer

_SHOWN = {"executions": "execution", "workspaces": "workspace", "snapshots": "snapshot"}


def prune(
    ctx: typer.Context,
    executions: Annotated[bool, typer.Option("--executions", help="Ended ones, with all that is theirs.")] = False,
    workspaces: Annotated[bool, typer.Option("--workspaces", help="Of ended ones; artifacts stay.")] = False,
    snapshots: Annotated[
        bool,
        typer.Option("--snapshots", help="Those no policy keeps; with --older-than all but those asked for or named."),
    ] = False,
    older_than: Annotated[str | None, typer.Option("--older-than", metavar="TIME", help="For example 7d.")] = None,
    state: Annotated[list[str] | None, typer.Option("--state", help="Of executions in it; may be repeated.")] = None,
    outcome: Annotated[list[str] | None, typer.Option("--outcome", help="That ended so; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option("-l", "--label", metavar="K=V", help="All must match.")] = None,
    all_tenants: Annotated[bool, typer.Option("--all-tenants", help="Of everybody; needs `admin`.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Remove what is over: without --executions, --workspaces or --snapshots ended executions. What has not ended, and
    snapshots that were asked for or named, always stay."""
    kinds = {"executions": executions, "workspaces": workspaces, "snapshots": snapshots}
    wish: dict[str, Any] = {
        "what": [kind for kind, wanted in kinds.items() if wanted] or ["executions"],
        "older_than_s": units.duration_s(older_than) if older_than else None,
        "states": [one.upper() for one in state or []] or None,
        "outcomes": [one.upper() for one in outcome or []] or None,
        "labels": units.pairs(label or [], "-l") or None,
        "all_tenants": all_tenants or None,
    }
    if not (yes or dry_run or sys.stdin.isatty()):
        raise UsageError("nobody can be asked here: give --yes, or --dry-run to see what would go")
    with reaching.client(ctx) as client:
        if not yes or dry_run:
            would = _whole(client.prune, wish | {"dry_run": True})
            if dry_run or not would.pruned:
                _show(would, as_json=as_json)
                return
            _table(would, console.note)
            if not typer.confirm("Remove all of it?", err=True):
                raise typer.Exit(1)
        _show(_whole(client.prune, wish), as_json=as_json)


def _whole(ask: Callable[..., Any], wish: dict[str, Any]) -> PruneAnswer:
    """All parts of an answer as one."""
    parts: list[PruneAnswer] = list(ask(**wish))
    return PruneAnswer(
        dry_run=parts[0].dry_run,
        pruned=[item for part in parts for item in part.pruned],
        kept=[item for part in parts for item in part.kept],
        freed_bytes=sum(part.freed_bytes for part in parts),
    )


def _show(answer: PruneAnswer, *, as_json: bool) -> None:
    if as_json:
        console.json_line(answer.model_dump_json(exclude={"next"}))
        return
    _table(answer, console.line)
    size = console.bytes_shown(answer.freed_bytes) if answer.freed_bytes >= 1024 else f"{answer.freed_bytes} bytes"
    console.line(f"{size} would be freed" if answer.dry_run else f"{size} freed")


def _table(answer: PruneAnswer, say: Callable[[str], None]) -> None:
    for item in answer.pruned:
        about = [_SHOWN[item.kind], item.id, console.printable(item.name), console.bytes_shown(item.size_bytes)]
        if item.elsewhere:
            about.append(f"(the rest by the sweeper of {console.printable(', '.join(item.elsewhere))})")
        say(" ".join(word for word in about if word))
    for kept in answer.kept:
        console.note(f"{_SHOWN[kept.kind]} {kept.id} stays: {console.printable(kept.why)}")


def register(app: typer.Typer) -> None:
    app.command("prune")(prune)
