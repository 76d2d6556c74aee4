"""`carrel api: HTTP only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator import configuration
from orchestrator.cli import flags


def api(
    config: Annotated[Path | None, flags.CONFIG] = None,
    set_: Annotated[list[str] | None, flags.SET] = None,
    data_dir: Annotated[Path | None, flags.DATA_DIR] = None,
    redis_url: Annotated[str | None, flags.REDIS_URL] = None,
    bind_host: Annotated[str | None, flags.BIND_HOST] = None,
    port: Annotated[int | None, flags.PORT] = None,
) -> None:
    """Serve the API only; any number of them share one store."""
    effective = configuration.load(
        flags.given(set_, data_dir=data_dir, redis_url=redis_url, bind_host=bind_host, port=port), file=config
    )
    from orchestrator import assembly

    raise typer.Exit(assembly.run_api(effective) or 0)


def register(app: typer.Typer) -> None:
    app.command("api")(api)
