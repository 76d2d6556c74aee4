"""Options that several verbs share: of the servers any setting by its name, the common ones by their own; of `run` and
`fork` what an execution may cost and take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import typer

from orchestrator.cli import units

CONFIG = typer.Option("--config", help="This carrel.toml instead of the usual places.")
SET = typer.Option("--set", metavar="NAME=VALUE", help="Any setting; `carrel config` lists them.")
DATA_DIR = typer.Option("--data-dir", help="Where workspaces, spools, store and token live.")
REDIS_URL = typer.Option("--redis-url", help="The store; else an embedded one.")
BIND_HOST = typer.Option("--host", help="The address to listen on.")
PORT = typer.Option("--port", help="The port; 0 takes a free one.")

BudgetUsd = Annotated[
    str | None, typer.Option("--budget-usd", metavar="USD", help="What its model calls may cost: 2.50, or none.")
]
BudgetTokens = Annotated[
    str | None, typer.Option("--budget-tokens", metavar="N", help="How many tokens they may take, or none.")
]
OnBudget = Annotated[
    Literal["fail", "wait"] | None, typer.Option("--on-budget", help="Beyond it: end, or wait for a raise.")
]
Cpus = Annotated[float | None, typer.Option("--cpus", help="Cores.")]
Memory = Annotated[str | None, typer.Option("-m", "--memory", metavar="SIZE", help="512m, 2g.")]


def given(pairs: Iterable[str] | None, **named: object) -> dict[str, object]:
    """What was set on the command line, for `configuration.load`; an option's own flag beats --set."""
    flags: dict[str, object] = dict(units.pairs(pairs or [], "--set"))
    flags.update({name: value for name, value in named.items() if value is not None})
    return flags
