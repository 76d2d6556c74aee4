"""`carrel image build`: make the sandbox image from what this installation carries. Knows nothing of how."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

from orchestrator.image_context import image_context

image = typer.Typer(rich_markup_mode=None, help="Make the image sandboxes run.")


@image.callback()
def about() -> None:
    """Make the image sandboxes run."""


@image.command("build")
def build(
    base: Annotated[str, typer.Option("--base", help="Build on this image; else one is found or made.")] = "",
    harness: Annotated[
        str, typer.Option("--harness", help="Also the image of this CLI agent: claude, codex, pi, mini-swe-agent.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Build anew even if this content was built before.")] = False,
) -> None:
    """Build it on this machine's engine, unless this very content was built before. Prints its tag."""
    named = {"--base": base, "--harness": harness}
    asked = [part for option, value in named.items() if value for part in (option, value)]
    asked += ["--force"] if force else []
    # The same script `make image` runs, by this interpreter: it needs the engine's SDK, which is installed here.
    raise typer.Exit(subprocess.run([sys.executable, image_context() / "build", *asked], check=False).returncode)


def register(app: typer.Typer) -> None:
    app.add_typer(image, name="image")
