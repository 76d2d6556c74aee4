"""`carrel restore`: a backup into an empty installation."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import configuration
from orchestrator.cli import console, flags
from orchestrator.cli.backup import Json, Progress, said
from orchestrator.cli.usage import UsageError


def restore(
    file: Annotated[Path, typer.Argument(help="What `carrel backup` wrote.", show_default=False)],
    end_sandboxes: Annotated[
        bool, typer.Option("--end-sandboxes", help="End what still runs on this host under this installation's name.")
    ] = False,
    as_json: Json = False,
    progress: Progress = False,
    config: Annotated[Path | None, flags.CONFIG] = None,
    set_: Annotated[list[str] | None, flags.SET] = None,
    data_dir: Annotated[Path | None, flags.DATA_DIR] = None,
    redis_url: Annotated[str | None, flags.REDIS_URL] = None,
) -> None:
    """Restore into an empty installation, with everything else of it stopped. All of the file is checked before
    anything is written; broken off, run it again. What ran goes on from its last snapshot, or ends LOST and says
    so."""
    if str(file) == "-":
        raise UsageError("a backup is read twice, first to check all of it: give a file")
    effective = configuration.load(flags.given(set_, data_dir=data_dir, redis_url=redis_url), file=config)
    from orchestrator import assembly

    with file.open("rb") as read:
        done = asyncio.run(assembly.restore(effective, read, end_sandboxes=end_sandboxes, progress=said(progress)))
    if as_json:
        told = {**asdict(done.head), **asdict(done.contents), **asdict(done.loaded), "corrupt": done.corrupt}
        console.line(json.dumps(told))
        return
    loaded = done.loaded
    console.note(
        f"restored {done.contents.executions} executions of {done.head.taken_at}: {loaded.finished} had ended,"
        f" {len(loaded.waits)} wait or sleep, {len(loaded.resumes)} go on from their last snapshot,"
        f" {len(loaded.lost)} ended"
    )
    for name in loaded.lost:
        console.note(f"{name} ended: `carrel inspect {name}` says why")
    for name in done.corrupt:
        console.note(f"{name} is not what it was when it was taken: it is not used, the one before it is")


def register(app: typer.Typer) -> None:
    app.command("restore")(restore)
