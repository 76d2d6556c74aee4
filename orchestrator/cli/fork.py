"""`carrel fork`: new executions that begin where this one stands, or stood."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from orchestrator import profile
from orchestrator.cli import console, flags, money, reaching, units
from orchestrator.cli.usage import UsageError


def fork(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="[TASK]", help="What it shall do: said to what goes on with its work, else run.", show_default=False
        ),
    ] = None,
    snapshot: Annotated[
        str,
        typer.Option(
            "--snapshot", help="As this one has it; else as it is now.", autocompletion=reaching.complete_snapshot
        ),
    ] = "",
    name: Annotated[str, typer.Option("--name", help="A name of its own; with -n NAME-1, NAME-2, …")] = "",
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=100, metavar="N", help="So many at once.")] = 1,
    label: Annotated[list[str] | None, typer.Option("-l", "--label", metavar="K=V", help="One label more.")] = None,
    env: Annotated[list[str] | None, typer.Option("-e", "--env", metavar="K=V", help="One variable more.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Another model.")] = None,
    budget_usd: flags.BudgetUsd = None,
    budget_tokens: flags.BudgetTokens = None,
    on_budget: flags.OnBudget = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="HOST", help="Other hosts it may reach: name, *.name.")
    ] = None,
    cpus: flags.Cpus = None,
    memory: flags.Memory = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="Its own deadline, from now.")
    ] = None,
    key: Annotated[str, typer.Option("--idempotency-key", help="Fork again with it: the same forks.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, as the API has them.")] = False,
) -> None:
    """Begin new executions with its files and harness state, as they are now or as a snapshot has them. It works on.
    What is not said is as it has it. Prints their ids."""
    if task is not None and not task:
        raise UsageError("the task is empty")
    limits: dict[str, Any] = {}
    if timeout:
        limits["deadline_s"] = units.duration_s(timeout)
    if budget_usd is not None:
        limits["budget_usd"] = money.limit(budget_usd, "--budget-usd", float)
    if budget_tokens is not None:
        limits["budget_tokens"] = money.limit(budget_tokens, "--budget-tokens", int)
    if on_budget is not None:
        limits["on_budget"] = on_budget
    resources: dict[str, Any] = {}
    if cpus is not None:
        resources["cpus"] = cpus
    if memory:
        resources["memory_bytes"] = units.size_bytes(memory)
    changes: dict[str, Any] = {
        "snapshot": snapshot,
        "name": name,
        "task": task,
        "labels": units.pairs(label or [], "-l"),
        "env": units.pairs(env or [], "-e"),
        "model": model,
        "egress": allow,
        "limits": limits,
        "resources": resources,
    }
    outage = reaching.Outage()
    with reaching.client(ctx, on_retry=outage.retry) as client:
        made = client.execution(reaching.name_of(client.address.url, execution)).fork(
            count=count, key=key, **{field: value for field, value in changes.items() if value}
        )
        profile.remember(client.address.url, made[-1].id)
    for one in made:
        assert one.record is not None
        console.line(one.record.model_dump_json() if as_json else one.id)


def register(app: typer.Typer) -> None:
    app.command("fork")(fork)
