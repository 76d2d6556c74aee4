"""`carrel update`: more or less CPU and memory for a running execution, as docker's verb of that name; another budget;
another allowlist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator.cli import console, money, reaching, units
from orchestrator.cli.usage import UsageError

if TYPE_CHECKING:
    from orchestrator.client.nouns import Record

RECEIPT_S = 20.0


def update(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    cpus: Annotated[float | None, typer.Option("--cpus", help="Cores.")] = None,
    memory: Annotated[str | None, typer.Option("-m", "--memory", metavar="SIZE", help="512m, 2g.")] = None,
    pids: Annotated[int | None, typer.Option("--pids-limit", help="Processes and threads.")] = None,
    budget_usd: Annotated[
        str | None, typer.Option("--budget-usd", metavar="USD", help="What its model calls may cost in all; none.")
    ] = None,
    budget_tokens: Annotated[
        str | None, typer.Option("--budget-tokens", metavar="N", help="How many tokens they may take in all; none.")
    ] = None,
    on_budget: Annotated[
        Literal["fail", "wait"] | None, typer.Option("--on-budget", help="Beyond it: end, or wait for a raise.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="HOST", help="The allowlist, whole: repeat for several.")
    ] = None,
    allow_nothing: Annotated[bool, typer.Option("--allow-nothing", help="An empty allowlist.")] = False,
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Give it more or less while it runs; waits for the receipt and prints what it has now, as measured. What is not
    named stays as it is."""
    budget: dict[str, Any] = {}
    if budget_usd is not None:
        budget["budget_usd"] = money.limit(budget_usd, "--budget-usd", float)
    if budget_tokens is not None:
        budget["budget_tokens"] = money.limit(budget_tokens, "--budget-tokens", int)
    if on_budget is not None:
        budget["on_budget"] = on_budget
    if allow and allow_nothing:
        raise UsageError("--allow and --allow-nothing say two different things")
    resize = not (cpus is None and memory is None and pids is None)
    if not (resize or budget or allow or allow_nothing):
        raise UsageError(
            "give at least one of --cpus, -m, --pids-limit, --budget-usd, --budget-tokens, --on-budget, --allow"
        )
    memory_bytes = units.size_bytes(memory) if memory else None
    with reaching.client(ctx) as client:
        found = reaching.execution(client, execution)
        if allow or allow_nothing:
            found.set_egress(allow or [])
        if budget:
            found.set_budget(**budget)
        if resize:
            record = found.resources(cpus=cpus, memory_bytes=memory_bytes, pids=pids, hold_s=RECEIPT_S)
            if record.wants.resources is not None:
                console.note("the wish is kept; it is carried out as soon as the sandbox can take it")
        assert found.record is not None
        if as_json:
            console.json_line(found.record.model_dump_json())
            return
        _show(found.record, resize=resize, budget=bool(budget), egress=bool(allow or allow_nothing))


def _show(record: Record, *, resize: bool, budget: bool, egress: bool) -> None:
    if resize:
        now = record.resources
        console.line(f"cpus {now.cpus:g} · memory {console.bytes_shown(now.memory_bytes)} · pids {now.pids}")
    if budget:
        console.line(money.budget(record))
    if egress:
        console.line(f"egress {', '.join(record.egress.allow) or 'none'}")


def register(app: typer.Typer) -> None:
    app.command("update")(update)
