"""`carrel login`: keep a server's address and token as a profile, after trying them."""

from __future__ import annotations

import re
import sys
from typing import Annotated

import typer

from orchestrator import profile
from orchestrator.cli import console, reaching
from orchestrator.cli.usage import UsageError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


def login(
    url: Annotated[str, typer.Argument(help="For example https://carrel.example.", show_default=False)],
    name: Annotated[str, typer.Option("--name", help="The profile's name.")] = "default",
) -> None:
    """Keep an address and its token. The token is read from stdin, or asked for: never from the command line, where
    others on the machine could see it."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a profile's name: letters, digits, dots, dashes, underscores")
    if sys.stdin.isatty():
        token = typer.prompt("Token", hide_input=True, err=True).strip()
    else:
        token = sys.stdin.readline().strip()
    if not TOKEN.fullmatch(token):
        raise UsageError("that is no token: give it on stdin, one line of printable characters")

    from orchestrator.client import Client, Patience

    with Client(url, token, patience=Patience(limit_s=reaching.CALL_PATIENCE_S)) as client:
        client.page(limit=1)
        kept = profile.save_profile(name, client.address.url, token)
    console.note(f"kept as profile {name} in {kept}, and used from now on")


def register(app: typer.Typer) -> None:
    app.command("login")(login)
