"""Local files and directories on their way up: walked, bounded, digested, sent only where the server lacks them.

A directory goes up whole, hidden files too: nothing is left out for its name. Links are followed where they stay inside
it; a link that leads out, a socket, a device or a FIFO is left out and said. Only "executable" is kept of a mode.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.client.nouns import FILE_COUNT, FILES_BYTES
from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.client import Client

AT_ONCE = 8
SHOWN = 3
READ_BYTES = 256 * 1024


class Names(NamedTuple):
    """What the verb calls a local path and its place in the workspace: an error names what the person gave."""

    source: str = "--upload"
    place: str = "--upload"


UPLOAD = Names()


def gather(
    wishes: Sequence[str], *, say: Callable[[str], None] | None, names: Names = UPLOAD, as_archive: bool = False
) -> list[tuple[Path, str]]:
    """(local file, path in the workspace) of every `SRC[:DST]`. Raises BadInput whose field is one of `names`.
    `as_archive`: directories too, so that empty ones come along, and any number: the server bounds what it unpacks."""
    found: dict[str, Path] = {}
    left_out: list[str] = []
    for wish in wishes:
        for source, path in _walk(wish, left_out, names, as_archive):
            if path in found and found[path] != source:
                raise _bad(
                    names.place,
                    f"{found[path]} and {source} would both become /workspace/{path}",
                    "give one another DST",
                )
            found[path] = source
            if len(found) > FILE_COUNT and not as_archive:
                raise _bad(
                    names.source, f"{wish}: more than {FILE_COUNT} files", "pack them: tar -cf x.tar …, and send x.tar"
                )
    if left_out and say:
        more = f" and {len(left_out) - SHOWN} more" if len(left_out) > SHOWN else ""
        say(f"left out (links out of the directory, sockets, devices): {', '.join(left_out[:SHOWN])}{more}")
    return [(source, path) for path, source in found.items()]


def _walk(wish: str, left_out: list[str], names: Names, folders_too: bool) -> Iterator[tuple[Path, str]]:
    text, colon, place = wish.rpartition(":")
    if not colon or Path(wish).exists():
        text, place = wish, ""
    source = Path(text)
    if not text or not source.exists():
        hint = "; SRC:DST names a place in /workspace" if names == UPLOAD else ""
        raise _bad(names.source, f"{text or wish!r} is not there", f"check the path{hint}")
    place = _place(place, names)
    if not source.is_dir():
        if not source.is_file():
            raise _bad(names.source, f"{source} is neither a file nor a directory", "upload its content as a file")
        into = wish.endswith("/") and colon
        yield source, f"{place}/{source.name}" if place and into else place or source.name
        return
    if not place and not colon:
        place = source.name  # "" for "."
    root = source.resolve()
    for folder, folders, files in os.walk(source, onerror=_unreadable):
        folders.sort()
        inside = Path(folder)
        if folders_too and inside != source:
            relative = inside.relative_to(source).as_posix()
            yield inside, f"{place}/{relative}" if place else relative
        for name in sorted(files) + [one for one in folders if (inside / one).is_symlink()]:
            path = inside / name
            relative = path.relative_to(source).as_posix()
            if not _ours(path, root):
                left_out.append(relative)
                continue
            yield path, f"{place}/{relative}" if place else relative


def _ours(path: Path, root: Path) -> bool:
    try:
        if path.is_symlink() and not path.resolve(strict=True).is_relative_to(root):
            return False
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:  # a link to nowhere, or in a circle
        return False


def _place(text: str, names: Names) -> str:
    place = text.removeprefix("/workspace").strip("/") if text.startswith("/workspace") else text
    place = "" if place in (".", "./") else place.removeprefix("./").rstrip("/")
    if place.startswith("/") or ".." in place.split("/"):
        raise _bad(names.place, f"{text!r} leaves /workspace", "give a path relative to /workspace")
    return place


def _unreadable(error: OSError) -> None:
    raise error


def _bad(field: str, message: str, remedy: str) -> BadInput:
    return BadInput(f"{field}: {message}", field=field, remedy=remedy)


def packed(gathered: Iterable[tuple[Path, str]]) -> Iterator[bytes]:
    """The same as one tar, piece by piece. A file that shrinks meanwhile is padded: its size was said already."""
    for source, path in gathered:
        if source.is_dir():
            folder = tarfile.TarInfo(path)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            yield folder.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            continue
        with source.open("rb") as file:
            found = os.fstat(file.fileno())
            info = tarfile.TarInfo(path)
            info.size, info.mtime = found.st_size, int(found.st_mtime)
            info.mode = 0o755 if found.st_mode & stat.S_IXUSR else 0o644
            yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            left = found.st_size
            while left and (piece := file.read(min(READ_BYTES, left))):
                left -= len(piece)
                yield piece
            while left:
                piece = bytes(min(READ_BYTES, left))
                left -= len(piece)
                yield piece
            yield bytes(-found.st_size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def upload(client: Client, gathered: Sequence[tuple[Path, str]]) -> list[Mapping[str, Any]]:
    """Send what the server lacks, a few at once; the `files` of a submit."""

    def one(item: tuple[Path, str]) -> Mapping[str, Any]:
        source, path = item
        return client.upload(source, path)

    total = sum(source.stat().st_size for source, _ in gathered)
    if total > FILES_BYTES:
        raise _bad(UPLOAD.source, f"{total} bytes in all (allowed: {FILES_BYTES})", "upload less")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, gathered))
