"""`carrel run`: submit, then behave like a local command: its streams, its exit code, Ctrl-C. What is watched and
steered here is in watching.py; this file turns options into a submit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from orchestrator import profile
from orchestrator.cli import console, flags, money, reaching, splitting, units
from orchestrator.cli.usage import UsageError

HELP = """Run a task or a command in a sandbox of its own and watch it.

\b
carrel run 'make test'               a task for the harness (bash: a script)
carrel run -f task.md --harness H    the task from a file; `-` from stdin
carrel run -- python3 -c 'print(1)'  any command
carrel run --upload . -- make        with files: SRC[:DST], DST in /workspace
carrel run --harness agent 'fix it'  an agent: --model, --budget-usd, --allow HOST

Stdout and stderr are the command's own, byte for byte; so is the exit code (128+n for signal n, 124 for --timeout, 125
when Carrel itself failed). Ctrl-C interrupts it, a second one cancels it, a third one leaves it to end by itself;
Ctrl-\\ leaves it running at once. Losing the connection, or closing the terminal, never stops it: `carrel logs -f
@last` goes on watching.

A directory given to --upload goes up whole, hidden files too; links are followed inside it, others are left out and
named. With a directory and no DST it lies under its own name; `.` lies in /workspace itself.
"""


def run(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(metavar='("TASK" | - | -- CMD…)', show_default=False)] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read the task from this file.")] = None,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Print the id and leave it running.")] = False,
    interactive: Annotated[
        bool,
        typer.Option("-i", "--interactive", help="Each line of stdin becomes a message; its end is not passed on."),
    ] = False,
    stdin: Annotated[
        Literal["none", "text", "jsonl"] | None,
        typer.Option("--stdin", help="What it reads: nothing (its stdin is empty), lines, or JSON lines."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option("-e", "--env", metavar="K=V", help="Set a variable.")] = None,
    env_file: Annotated[list[Path] | None, typer.Option("--env-file", help="Read variables from a file.")] = None,
    harness: Annotated[str | None, typer.Option("--harness", help="Which program does the task.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Which model it asks; else the server's default.")
    ] = None,
    budget_usd: flags.BudgetUsd = None,
    budget_tokens: flags.BudgetTokens = None,
    on_budget: flags.OnBudget = None,
    max_steps: Annotated[int | None, typer.Option("--max-steps", metavar="N", help="So many model calls.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="HOST", help="A host it may reach: name, *.name, name:port. Else none."),
    ] = None,
    image: Annotated[str | None, typer.Option("--image", help="An image built FROM ours.")] = None,
    cpus: flags.Cpus = None,
    memory: flags.Memory = None,
    pids: Annotated[int | None, typer.Option("--pids-limit", help="Processes and threads.")] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="DURATION", help="90s, 30m: then exit 124.")
    ] = None,
    grace: Annotated[
        str | None, typer.Option("--stop-timeout", metavar="DURATION", help="Between SIGTERM and SIGKILL.")
    ] = None,
    idle_timeout: Annotated[
        str | None,
        typer.Option("--idle-timeout", metavar="DURATION", help="Idle for so long, it sleeps until somebody needs it."),
    ] = None,
    snapshot_every: Annotated[
        str | None, typer.Option("--snapshot-every", metavar="DURATION", help="Snapshots while it runs.")
    ] = None,
    disk: Annotated[str | None, typer.Option("--disk", metavar="SIZE", help="Most its workspace may take.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="A name of its own.")] = None,
    label: Annotated[list[str] | None, typer.Option("-l", "--label", metavar="K=V", help="A label.")] = None,
    upload: Annotated[
        list[str] | None, typer.Option("--upload", metavar="SRC[:DST]", help="A file or directory to lay into it.")
    ] = None,
    from_archive: Annotated[
        Path | None,
        typer.Option("--from-archive", metavar="FILE", help="Begin with what `carrel snapshot export` wrote."),
    ] = None,
    download: Annotated[
        list[str] | None,
        typer.Option("--download", metavar="PATH[:DST]", help="Fetch this from its workspace when it has ended."),
    ] = None,
    key: Annotated[str, typer.Option("--idempotency-key", help="Run again with it: the same execution.")] = "",
    remove: Annotated[bool, typer.Option("--rm", help="Remove it when it has ended.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No notes of ours on stderr.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Its events as JSON lines on stdout; with -d, the record.")
    ] = False,
) -> None:
    command = splitting.after_dashes(ctx)
    if from_archive and upload:
        raise UsageError("--from-archive goes without --upload: `carrel cp` puts files into what it began with")
    if from_archive and not from_archive.is_file():
        raise UsageError(f"--from-archive: there is no file {from_archive}")
    task = _task(words or [], file, command, harness, interactive)
    if detach and (download or remove or interactive):
        raise UsageError("-d goes without -i, --download and --rm: nobody is there to do it")
    if interactive and stdin == "none":
        raise UsageError("-i sends messages to a stdin that --stdin none leaves empty")
    variables: dict[str, str] = {}
    for path in env_file or []:
        variables |= units.env_file(path)
    variables |= units.pairs(env or [], "-e")
    spec: dict[str, Any] = {
        "task": task,
        "command": list(command) if command else None,
        "harness": harness,
        "image": image,
        "stdin": stdin,
        "env": variables,
        "name": name,
        "labels": units.pairs(label or [], "-l"),
        "resources": _given(
            cpus=cpus,
            memory_bytes=units.size_bytes(memory) if memory else None,
            pids=pids,
            disk_bytes=units.size_bytes(disk) if disk else None,
        ),
        "limits": _given(
            deadline_s=units.duration_s(timeout) if timeout else None,
            grace_s=units.duration_s(grace) if grace else None,
            idle_timeout_s=units.duration_s(idle_timeout) if idle_timeout else None,
            steps=max_steps,
            on_budget=on_budget,
        )
        | _limits(budget_usd, budget_tokens),
        "snapshots": {"every_s": units.duration_s(snapshot_every)} if snapshot_every else None,
        "model": model,
        "egress": allow,
    }
    spec = {field: value for field, value in spec.items() if value}

    from orchestrator.cli import fetching, gathering, watching

    wanted = [fetching.wish(text) for text in download or []]
    gathered = gathering.gather(upload or [], say=None if quiet else console.note)
    watch = watching.Watch(
        interactive=interactive, quiet=quiet, as_json=as_json, downloads=tuple(wanted), remove=remove
    )
    if not detach:
        raise typer.Exit(watching.run(ctx, spec, gathered, key, watch, from_archive))
    with reaching.client(ctx) as client:
        if gathered:
            spec["files"] = gathering.upload(client, gathered)
        if from_archive:
            spec["archive"] = client.upload(from_archive, "archive")["sha256"]
        execution = client.submit(key=key, **spec)
        profile.remember(client.address.url, execution.id)
        assert execution.record is not None
        if as_json:
            console.json_line(execution.record.model_dump_json())
        else:
            console.line(execution.id)


def _limits(budget_usd: str | None, budget_tokens: str | None) -> dict[str, Any]:
    """`none` is said: it takes the installation's own limit away."""
    found: dict[str, Any] = {}
    if budget_usd is not None:
        found["budget_usd"] = money.limit(budget_usd, "--budget-usd", float)
    if budget_tokens is not None:
        found["budget_tokens"] = money.limit(budget_tokens, "--budget-tokens", int)
    return found


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _task(
    words: list[str], file: Path | None, command: tuple[str, ...] | None, harness: str | None, interactive: bool
) -> str:
    """The task's text, from the one place it was given. Raises UsageError."""
    if len(words) > 1:
        raise UsageError(f"a task is one argument: quote it, or write `--` before a command: -- {' '.join(words)}")
    given = [what for what, there in (("a TASK", words), ("-f", file), ("-- CMD", command is not None)) if there]
    if len(given) != 1:
        raise UsageError(f"give one of TASK, -f FILE, - or -- CMD, not {' and '.join(given) or 'none of them'}")
    if command is not None:
        if not command:
            raise UsageError("there is no command after --")
        if harness not in (None, "command"):
            raise UsageError("-- CMD is a harness of its own: take out --harness, or give a TASK")
        return ""
    if file is not None and str(file) != "-":
        try:
            return file.read_text()
        except (OSError, UnicodeDecodeError) as failed:
            raise UsageError(f"-f {file}: {failed}") from None
    if file is not None or words == ["-"]:
        if interactive:
            raise UsageError("stdin holds either the task (-) or messages (-i)")
        try:
            text = sys.stdin.buffer.read().decode()
        except UnicodeDecodeError as failed:
            raise UsageError(f"the task on stdin is not UTF-8: {failed}") from None
        if not text:
            raise UsageError("the task on stdin is empty")
        return text
    if not words[0]:
        raise UsageError("the task is empty")
    return words[0]


def register(app: typer.Typer) -> None:
    app.command("run", cls=splitting.Splitting, help=HELP)(run)
