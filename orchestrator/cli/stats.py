"""`carrel stats`: how executions ended, and what is there now."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import console, money, reaching, units


def stats(
    ctx: typer.Context,
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="24h (ago) or 2025-01-31T08:15:00Z.")] = "24h",
    by: Annotated[str, typer.Option("--by", help="harness, tenant, or label:KEY.")] = "",
    disk: Annotated[bool, typer.Option("--disk", help="What each tenant's workspaces and snapshots take.")] = False,
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Outcomes by reason since a moment, and how many are in which state now."""
    with reaching.client(ctx) as client:
        found = client.stats(since=units.moment(since), by=by, disk=disk)
    if as_json:
        console.json_line(found.model_dump_json())
        return
    now = ", ".join(f"{count} {state}" for state, count in found.states.items() if count)
    console.line(f"now: {console.printable(now) or 'nothing there'}")
    rows = [
        (
            group.group or "all",
            str(group.completed),
            _counts(group.by_outcome),
            str(group.resumed),
            str(group.in_doubt or "-"),
            f"{group.wall_s:.0f}s",
            money.spent(group.spend) or "-",
            _counts(group.by_reason),
        )
        for group in found.groups
    ]
    if rows:
        console.table(("GROUP", "ENDED", "OUTCOMES", "RESUMED", "IN DOUBT", "WALL", "SPENT", "REASONS"), rows)
    for host in found.hosts:
        workers = f"{len(host.workers)} worker{'s' if len(host.workers) != 1 else ''}"
        console.line(f"host {console.printable(host.name)}: {workers}, seen {console.age(host.seen_at)} ago")
        if short := host.facts.get("short"):
            console.line(f"  no room, nothing new is begun: {console.printable(short)}")
    if store := found.store:
        free = f"{console.bytes_shown(store.free_bytes)} of {console.bytes_shown(store.total_bytes)} free"
        console.line(f"store {store.kind}: {free if store.total_bytes else 'its room is not known'}")
    if found.disk:
        taken = [
            (
                one.tenant,
                str(one.workspaces),
                console.bytes_shown(one.used_bytes),
                str(one.snapshots),
                console.bytes_shown(one.snapshot_bytes),
            )
            for one in found.disk
        ]
        console.table(("TENANT", "WORKSPACES", "USED", "SNAPSHOTS", "THEIR SIZE"), taken)


def _counts(counts: dict[str, int]) -> str:
    return " ".join(f"{name}={count}" for name, count in sorted(counts.items()) if count) or "-"


def register(app: typer.Typer) -> None:
    app.command("stats")(stats)
