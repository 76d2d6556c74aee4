"""Options that `serve`, `api` and `worker` share: any setting by its name, the common ones by their own."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from orchestrator.cli import units

CONFIG = typer.Option("--config", help="This carrel.toml instead of the usual places.")
SET = typer.Option("--set", metavar="NAME=VALUE", help="Any setting; `carrel config` lists them.")
DATA_DIR = typer.Option("--data-dir", help="Where workspaces, spools, store and token live.")
REDIS_URL = typer.Option("--redis-url", help="The store; else an embedded one.")
BIND_HOST = typer.Option("--host", help="The address to listen on.")
PORT = typer.Option("--port", help="The port; 0 takes a free one.")


def given(pairs: Iterable[str] | None, **named: object) -> dict[str, object]:
    """What was set on the command line, for `settings.load`; an option's own flag beats --set."""
    flags: dict[str, object] = dict(units.pairs(pairs or [], "--set"))
    flags.update({name: value for name, value in named.items() if value is not None})
    return flags
