"""`carrel update`: more or less CPU and memory for a running execution, as docker's verb of that name."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import console, reaching, units
from orchestrator.cli.usage import UsageError

RECEIPT_S = 20.0


def update(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    cpus: Annotated[float | None, typer.Option("--cpus", help="Cores.")] = None,
    memory: Annotated[str | None, typer.Option("-m", "--memory", metavar="SIZE", help="512m, 2g.")] = None,
    pids: Annotated[int | None, typer.Option("--pids-limit", help="Processes and threads.")] = None,
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Give it more or less while it runs; waits for the receipt and prints what the sandbox has now, as measured."""
    if cpus is None and memory is None and pids is None:
        raise UsageError("give at least one of --cpus, -m, --pids-limit")
    memory_bytes = units.size_bytes(memory) if memory else None
    with reaching.client(ctx) as client:
        found = reaching.execution(client, execution)
        record = found.resources(cpus=cpus, memory_bytes=memory_bytes, pids=pids, hold_s=RECEIPT_S)
        if record.wants.resources is not None:
            console.note("the wish is kept; it is carried out as soon as the sandbox can take it")
        if as_json:
            console.line(record.model_dump_json())
        else:
            now = record.resources
            console.line(f"cpus {now.cpus:g} · memory {console.bytes_shown(now.memory_bytes)} · pids {now.pids}")


def register(app: typer.Typer) -> None:
    app.command("update")(update)
