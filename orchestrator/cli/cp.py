"""`carrel cp`: files out of or into a workspace, as docker's verb of that name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import console, fetching, gathering, output, reaching
from orchestrator.cli.usage import UsageError
from orchestrator.errors import NotFound

if TYPE_CHECKING:
    from orchestrator.client import Client, Execution

READ_BYTES = 256 * 1024
NAMES = gathering.Names(source="SRC", place="DST")


def cp(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC", help="EXECUTION:PATH, a local path, or - for stdin.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="A local path, - for stdout, or EXECUTION:PATH.")],
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing.")] = False,
) -> None:
    """Copy a file or a directory out of its workspace, or into it, also while it works.

    \b
    carrel cp @last:report.xml .          carrel cp ./data @last:data
    carrel cp @last:/workspace/log - | …  … | carrel cp - @last:notes.txt
    carrel cp @last:src - | tar -t        tar -c src | carrel cp - @last:there/

    Paths are relative to /workspace. Into a directory that is there, a copy keeps its name; links are not followed out.
    With -, a directory is a tar: onto stdout, or from stdin into a directory (one that is there, or a name with a slash
    at its end).
    """
    down, up = _remote(source), _remote(target)
    if (down is None) == (up is None):
        raise UsageError("one of SRC and DST is EXECUTION:PATH, the other is here")
    with reaching.client(ctx) as client:
        if down is not None:
            found = reaching.execution(client, down[0])
            path = fetching.in_workspace(down[1])
            if target == "-":
                _to_stdout(found, path)
                return
            count = fetching.fetch(found, path, Path(target), say=console.note)
        else:
            assert up is not None
            found = reaching.execution(client, up[0])
            count = _upload(client, found, source, up[1])
    if not quiet:
        console.note(f"{count} file{'s' if count != 1 else ''} copied")


def _remote(text: str) -> tuple[str, str] | None:
    """`EXECUTION:PATH`; a local path with a colon is written with a slash before it, as for docker and scp."""
    ref, colon, path = text.partition(":")
    if not colon or not ref or "/" in ref or ref.startswith("."):
        return None
    return ref, path


def _to_stdout(found: Execution, path: str) -> None:
    directory = not path or found.files.stat(path).kind == "directory"
    for piece in found.files.archive(path) if directory else found.files.chunks(path):
        output.write_all(1, piece)


def _upload(client: Client, found: Execution, source: str, target: str) -> int:
    place = fetching.in_workspace(target)
    if source == "-":
        if not place or target.endswith("/") or _is_directory(found, place):
            return found.files.unpack(place, _stdin()).files
        found.files.write(place, _stdin())
        return 1
    # `cp dir ID:there` makes there/dir where `there` is a directory, else `there` itself; as cp and docker do.
    name = Path(source).resolve().name
    into = not place or target.endswith("/") or _is_directory(found, place)
    if into and not (Path(source).is_dir() and source.rstrip("/").endswith("/.")):
        place = str(PurePosixPath(place) / name)
    if Path(source).is_dir():
        gathered = gathering.gather([f"{source}:{place}"], say=console.note, names=NAMES, as_archive=True)
        prefix = place + "/" if place else ""
        packed = gathering.packed((local, path.removeprefix(prefix)) for local, path in gathered)
        return found.files.unpack(place, packed).files
    gathered = gathering.gather([f"{source}:{place}"], say=console.note, names=NAMES)
    for local, path in gathered:
        executable = os.access(local, os.X_OK)
        found.files.write(path, local, mode=0o755 if executable else 0o644)
    return len(gathered)


def _is_directory(found: Execution, path: str) -> bool:
    try:
        return found.files.stat(path).kind == "directory"
    except NotFound:
        return False


def _stdin() -> Iterator[bytes]:
    while piece := sys.stdin.buffer.read(READ_BYTES):
        yield piece


def register(app: typer.Typer) -> None:
    app.command("cp")(cp)
