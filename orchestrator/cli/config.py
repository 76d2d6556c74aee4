"""`carrel config`: the effective settings and where each comes from; and whom the command line would talk to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator import configuration, settings
from orchestrator.cli import console, reaching
from orchestrator.room import Mark


def config(ctx: typer.Context, as_json: Annotated[bool, reaching.Json] = False) -> None:
    """Show the effective settings of a server started here, each with its origin, and the client's target."""
    effective = configuration.load()
    who = reaching.target(ctx)
    shown = {name: (_plain(getattr(effective, name)), effective.origin.get(name, "")) for name in settings.SETTINGS}
    if as_json:
        document = {name: {"value": value, "origin": origin} for name, (value, origin) in shown.items()}
        client = {"url": who.url, "origin": who.origin, "token": bool(who.token)}
        console.document({"settings": document, "client": client})
        return
    rows = [(name, _text(value), origin) for name, (value, origin) in shown.items()]
    console.table(("SETTING", "VALUE", "ORIGIN"), rows)
    console.line(f"\nclient: {who.url} ({who.origin}), {'with a token' if who.token else 'without a token'}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mark):
        return str(value) or "0"
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def register(app: typer.Typer) -> None:
    app.command("config")(config)
