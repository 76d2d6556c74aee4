"""The program `carrel`: its list of verbs, what all of them share, and how an error becomes a line and an exit code.
Knows no verb from the inside: a verb's file is imported when that verb is called, so `carrel --help` stays quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]  # its documented place
from typer.core import TyperCommand, TyperGroup

from orchestrator import __version__
from orchestrator.cli import console, leaving
from orchestrator.cli.usage import UsageError
from orchestrator.errors import CarrelError

#: verb → its one line in the overview; in the order shown. The file of a verb has its name, `exec` in `exec_`.
VERBS = {
    "run": "Run a task or a command in a sandbox of its own and watch it.",
    "ps": "List executions.",
    "inspect": "Show one execution's record.",
    "logs": "Print what it wrote, from the start or live.",
    "events": "Print its history, from the start or live.",
    "intents": "List what it said it would do, and what came of it.",
    "settle": "Decide on something that may or may not have been done.",
    "send": "Say something to it while it works; --interrupt stops its current step.",
    "exec": "Run one command beside it, in its sandbox.",
    "cp": "Copy files out of or into its workspace.",
    "ls": "List what is in its workspace.",
    "diff": "What changed in its workspace since a snapshot.",
    "artifacts": "List and get what it left in /workspace/artifacts.",
    "wait": "Wait for its end; exits as it did.",
    "stop": "End it: SIGTERM, then SIGKILL after its grace.",
    "kill": "End it at once.",
    "rm": "Remove its record, history and files.",
    "prune": "Remove what is over: ended executions, their workspaces, snapshots.",
    "pause": "Freeze it.",
    "resume": "Thaw it, or wake it.",
    "hibernate": "Put it to sleep: no memory, no process, until somebody needs it.",
    "snapshot": "Take, list, name and remove points one can fork or rewind to.",
    "fork": "Begin new ones with its files and state, as they are or were.",
    "rewind": "Go on from a snapshot, under the same name.",
    "tree": "Draw where it began and what came of that.",
    "update": "Give it more or less while it runs: CPU, memory, budget, allowlist.",
    "harnesses": "List which programs can do a task.",
    "stats": "Outcomes by reason, harness, tenant or label.",
    "config": "Show the effective settings and where each comes from.",
    "serve": "Serve: API and worker in one process.",
    "api": "Serve the API only.",
    "worker": "Run a worker only.",
    "backup": "Everything this installation knows, as one file, while it works.",
    "restore": "A backup into an empty installation.",
    "image": "Make the image sandboxes run.",
    "doctor": "Say what is there, what is missing, how to get it.",
    "login": "Keep a server's address and token as a profile.",
    "completion": "Print the completion script of a shell.",
}

OURS, TIMEOUT, CTRL_C, USAGE, BROKEN_PIPE = 125, 124, 130, 2, 141


# Of its refusals typer exports this one; two classes up is the one of all of them.
_Refusal: type[BaseException] = typer.BadParameter.__mro__[2]


class _ReaderGone(Exception):
    """Nobody reads our stdout any more. A class of its own, because typer makes exit code 1 of BrokenPipeError."""


class Verbs(TyperGroup):
    """The group whose commands are imported when they are called."""

    _overview = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        if self._overview:
            return TyperCommand(cmd_name, help=VERBS[cmd_name])
        module = import_module(f"orchestrator.cli.{'exec_' if cmd_name == 'exec' else cmd_name}")
        own = typer.Typer(add_completion=False, rich_markup_mode=None)
        module.register(own)
        return typer.main.get_group(own).commands[cmd_name]

    @contextmanager
    def _names_only(self) -> Iterator[None]:
        self._overview = True
        try:
            yield
        finally:
            self._overview = False

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderGone from None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with self._names_only():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        with self._names_only():
            return super().shell_complete(ctx, incomplete)


@dataclass
class Shared:
    """What stands before the verb."""

    url: str | None = None
    profile: str | None = None
    flags: dict[str, object] = field(default_factory=dict)


app = typer.Typer(cls=Verbs, add_completion=False, rich_markup_mode=None)


def _version(wanted: bool) -> None:
    if wanted:
        console.line(f"carrel {__version__}")
        raise typer.Exit


@app.callback(
    help="Every agent execution gets its own computer: durable, steerable, attachable by name.",
    epilog="An execution is named by its id, a unique prefix of it, its name, or @last (the last one run from here).",
    context_settings={"help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
def shared(
    ctx: typer.Context,
    url: Annotated[str | None, typer.Option(help="The server; else CARREL_URL, the profile, the local one.")] = None,
    profile: Annotated[str | None, typer.Option(help="A profile made by `carrel login`; else CARREL_PROFILE.")] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    ctx.obj = Shared(url, profile)
    if ctx.invoked_subcommand is None:
        console.line(ctx.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command line; its exit code. Every error is one line on stderr, with its remedy."""
    completion_init()  # the shells' ways of asking; without it `_CARREL_COMPLETE` is not understood
    command = typer.main.get_command(app)
    try:
        with leaving.by_ctrl_c(CTRL_C):
            code = command.main(args=arguments and list(arguments), prog_name="carrel", standalone_mode=False)
        sys.stdout.flush()
    except UsageError as usage:
        console.error(str(usage), "see `carrel VERB --help`")
        return USAGE
    except _Refusal as refused:
        # Its own words, then where to read more: two lines, no box.
        said: Any = refused
        where = said.ctx.command_path if getattr(said, "ctx", None) else "carrel"
        console.error(said.format_message(), f"see `{where} --help`")
        return USAGE
    except CarrelError as refused:
        console.refusal(refused)
        return OURS
    except (KeyboardInterrupt, typer.Abort):
        return CTRL_C
    except (_ReaderGone, BrokenPipeError):
        # The reader has gone (`carrel logs … | head`): no message, and none from the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as failed:
        console.error(str(failed))
        return OURS
    return code if isinstance(code, int) else 0
