"""`carrel send`: say something to a running execution, or interrupt its current step."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from orchestrator.cli import console, reaching
from orchestrator.cli.usage import UsageError


def send(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    text: Annotated[str | None, typer.Argument(metavar='("TEXT" | -)', show_default=False)] = None,
    interrupt: Annotated[
        bool, typer.Option("--interrupt", help="SIGINT first (or its own way): it stops what it does.")
    ] = False,
    mode: Annotated[
        Literal["steer", "follow_up"], typer.Option("--mode", help="Now, or when its current turn is done.")
    ] = "steer",
    id: Annotated[str, typer.Option("--id", help="Your own id: sending it twice delivers it once.")] = "",
    raw: Annotated[bool, typer.Option("--raw", help="With -: stdin's bytes exactly, not as a line.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing.")] = False,
    as_json: Annotated[bool, reaching.Json] = False,
) -> None:
    """Put a message into its inbox: durable when this returns, delivered once. `-` reads it from stdin."""
    if text is None and not interrupt:
        raise UsageError("give a TEXT, - for stdin, or --interrupt")
    if raw and text != "-":
        raise UsageError("--raw goes with - (stdin)")
    content: str | bytes | None = text
    if text == "-":
        content = sys.stdin.buffer.read()
        if not raw:
            try:
                content = content.decode().removesuffix("\n")
            except UnicodeDecodeError as failed:
                raise UsageError(f"stdin is not UTF-8 ({failed}); --raw sends it as it is") from None
    with reaching.client(ctx) as client:
        found = client.execution(reaching.name_of(client.address.url, execution))
        if interrupt:
            found.interrupt()
            if content is None and not quiet:
                console.note("interrupted")
        if content is not None:
            receipt = found.send(content, id=id, mode=mode)
            if as_json:
                console.json_line(receipt.model_dump_json())
            elif not quiet:
                console.note(f"message {receipt.n} {'was sent before' if receipt.repeated else 'accepted'}")


def register(app: typer.Typer) -> None:
    app.command("send")(send)
