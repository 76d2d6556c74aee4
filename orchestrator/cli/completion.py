"""`carrel completion SHELL`: the script that completes verbs and options."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]  # its documented place

from orchestrator.cli import console


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Which shell.")],
) -> None:
    """Print the completion script. bash: `source <(carrel completion bash)`; the same line in ~/.bashrc keeps it."""
    console.line(get_completion_script(prog_name="carrel", complete_var="_CARREL_COMPLETE", shell=shell))


def register(app: typer.Typer) -> None:
    app.command("completion")(completion)
