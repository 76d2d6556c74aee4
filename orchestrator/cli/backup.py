"""`carrel backup`: everything an installation knows into one file, while it works; or the check of such a file."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from orchestrator import backup as backups
from orchestrator import configuration
from orchestrator.cli import console, flags
from orchestrator.cli.usage import UsageError

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Progress = Annotated[bool, typer.Option("--progress", help="Say on stderr which piece was done.")]


def backup(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Where to; - is stdout.")] = "",
    verify: Annotated[str, typer.Option("--verify", metavar="FILE", help="Read this one whole; - is stdin.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="A file of that name is replaced, at the end.")] = False,
    files: Annotated[
        bool, typer.Option("--files/--no-files", help="With the files of snapshots and artifacts.")
    ] = True,
    as_json: Json = False,
    progress: Progress = False,
    config: Annotated[Path | None, flags.CONFIG] = None,
    set_: Annotated[list[str] | None, flags.SET] = None,
    data_dir: Annotated[Path | None, flags.DATA_DIR] = None,
    redis_url: Annotated[str | None, flags.REDIS_URL] = None,
) -> None:
    """Back up records, histories, tokens, streams and this host's snapshots and artifacts, while everything runs. Run
    it where `carrel serve` runs: it reads the store and the snapshots itself, as the same user."""
    if bool(output) == bool(verify):
        raise UsageError("give either -o FILE or --verify FILE")
    if verify:
        _verify(verify, as_json=as_json)
        return
    effective = configuration.load(flags.given(set_, data_dir=data_dir, redis_url=redis_url), file=config)
    from orchestrator import assembly

    with backups.Output(output, replace=replace) as out:
        taken = asyncio.run(assembly.back_up(effective, out, files=files, progress=said(progress)))
    tell(taken.head, taken.contents, as_json=as_json, quiet=output == "-")


def _verify(name: str, *, as_json: bool) -> None:
    with read(name) as file:
        whole = backups.verified(file)
    tell(whole.head, whole.contents, as_json=as_json)


def read(name: str) -> BinaryIO:
    """To be read once. Raises OSError."""
    return sys.stdin.buffer if name == "-" else Path(name).open("rb")


def said(progress: bool) -> Any:
    return console.note if progress else lambda name: None


def tell(head: backups.Head, contents: backups.Contents, *, as_json: bool, quiet: bool = False) -> None:
    """What a backup has, and what it has not."""
    if as_json:
        say = sys.stderr.write if quiet else sys.stdout.write
        say(json.dumps({**asdict(head), **asdict(contents)}) + "\n")
        return
    size = console.bytes_shown(contents.bytes)
    console.note(
        f"backup {contents.chain[:12]} of {head.installation} on {head.host}, {head.taken_at}: {contents.executions}"
        f" executions, {contents.snapshots} snapshots ({contents.snapshot_files} with their files), artifacts of"
        f" {contents.artifacts}, {size}"
    )
    if contents.elsewhere_count:
        console.note(
            f"{contents.elsewhere_count} snapshots are on other hosts and in no archive, {contents.elsewhere[0]} for"
            " one: their files are not in it"
        )
    if contents.gone:
        console.note(f"{len(contents.gone)} snapshots went while it was taken, {contents.gone[0]} for one")


def register(app: typer.Typer) -> None:
    app.command("backup")(backup)
