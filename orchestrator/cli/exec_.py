"""`carrel exec`: one command beside the harness, in its sandbox, as the same user."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from orchestrator.cli import console, output, reaching, units
from orchestrator.cli.usage import UsageError

TIMEOUT, OURS = 124, 125


def exec_(
    ctx: typer.Context,
    execution: Annotated[str, reaching.Ref],
    words: Annotated[list[str] | None, typer.Argument(metavar="[--] CMD…", show_default=False)] = None,
    env: Annotated[list[str] | None, typer.Option("-e", "--env", metavar="K=V", help="Set a variable.")] = None,
    folder: Annotated[
        str | None, typer.Option("-w", "--workdir", metavar="DIR", help="Where; else /workspace.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("-i", "--interactive", help="Our stdin, read to its end first, is its stdin.")
    ] = False,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Start it and leave it; prints its pid.")] = False,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="DURATION", help="Then exit 124.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Wait, and print one object: exit_code, stdout, stderr.")
    ] = False,
) -> None:
    """Run one command in its sandbox; its streams and its exit code are ours. Options go before EXECUTION."""
    command = words or []
    if command[:1] == ["--"]:
        command = command[1:]
    elif command and command[0].startswith("-"):
        raise UsageError(f"options go before EXECUTION: carrel exec {command[0]} {execution} -- CMD")
    if not command:
        raise UsageError("give a command: carrel exec EXECUTION -- CMD")
    options: dict[str, object] = {"env": units.pairs(env or [], "-e"), "cwd": folder, "detach": detach}
    if interactive:
        options["stdin"] = sys.stdin.buffer.read()
    if timeout:
        seconds = units.duration_s(timeout)
        options["timeout_s"] = max(1, round(seconds))  # init counts whole seconds
    with reaching.client(ctx) as client:
        found = client.execution(reaching.name_of(client.address.url, execution))
        if as_json or detach:
            result = found.exec(command, **options)
            if as_json:
                console.json_line(result.model_dump_json(exclude_none=True))
            else:
                console.line(str(result.pid or ""))
            if result.error:
                console.error(result.error)
            raise typer.Exit(
                0 if detach and not result.error else _code(result.exit_code, result.signal, result.timed_out)
            )
        from orchestrator.client.nouns import Exited, Output

        for event in found.exec_stream(command, **options):
            if isinstance(event, Output):
                output.write_all(output.DESCRIPTORS[event.stream], event.data)
            elif isinstance(event, Exited):
                if event.error:
                    console.error(event.error)
                raise typer.Exit(_code(event.exit_code, event.signal, event.timed_out))


def _code(exit_code: int | None, signal: int | None, timed_out: bool) -> int:
    if timed_out:
        return TIMEOUT
    if exit_code is not None:
        return exit_code
    return 128 + signal if signal is not None else OURS


def register(app: typer.Typer) -> None:
    app.command(
        "exec",
        # `carrel exec ID ls -l`: after the first word everything is the command's, as docker has it.
        context_settings={"allow_interspersed_args": False},
    )(exec_)
