"""`carrel worker: runs executions, serves nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator import configuration
from orchestrator.cli import flags


def worker(
    config: Annotated[Path | None, flags.CONFIG] = None,
    set_: Annotated[list[str] | None, flags.SET] = None,
    data_dir: Annotated[Path | None, flags.DATA_DIR] = None,
    redis_url: Annotated[str | None, flags.REDIS_URL] = None,
) -> None:
    """Run a worker only: it takes due executions from the store and runs them here."""
    effective = configuration.load(flags.given(set_, data_dir=data_dir, redis_url=redis_url), file=config)
    from orchestrator import assembly

    raise typer.Exit(assembly.run_worker(effective) or 0)


def register(app: typer.Typer) -> None:
    app.command("worker")(worker)
