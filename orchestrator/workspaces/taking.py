"""An artifact out of a hostile workspace into a file of ours: found, copied, digested. Knows no shelf.

Bounded in time and room: no more than was there when it was opened is read, nothing but regular files is opened, and
holes stay holes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from orchestrator.durable import disk_errors
from orchestrator.errors import BadInput, CarrelError, Conflict
from orchestrator.shelf import ARTIFACTS, places
from orchestrator.workspace import Files, FileStat, OpenFile

_READ_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(_READ_BYTES)
_PAGE: Final = 1000
_TRIES: Final = 2


def found(files: Files, named: Sequence[str]) -> Iterator[tuple[str, str, FileStat | CarrelError]]:
    """(its path as an artifact, its path in the workspace, what is there), each artifact once: those named, then all
    below the folder but its folders. Raises nothing of what is wrong with one."""
    seen: set[str] = set()
    for said in named:
        place, path = places(said)
        if place in seen:
            continue
        seen.add(place)
        try:
            if path.startswith(("/", "../")) or path in (".", ".."):
                raise BadInput("it is not in the workspace", field="path", limit="a file below /workspace")
            yield place, path, files.stat(path)
        except CarrelError as refused:
            yield place, path, refused
    after = ""
    while page := _page(files, after):
        for stat in page:
            after = stat.path
            place = stat.path.removeprefix(f"{ARTIFACTS}/")
            if stat.kind != "directory" and place not in seen:
                yield place, stat.path, stat


def _page(files: Files, after: str) -> Sequence[FileStat]:
    try:
        return files.list(ARTIFACTS, recursive=True, after=after, limit=_PAGE)
    except CarrelError:  # no such folder, or something else of that name
        return ()


def take(files: Files, path: str, to: Path, limit_bytes: int) -> tuple[str, FileStat]:
    """Copy the regular file `path` to the new file `to`: (sha256 hex, its stat as copied). Raises CarrelError, Conflict
    for one that is too large or does not hold still; DiskFull; OSError. Then `to` may be there in part."""
    for _ in range(_TRIES):
        file = files.open(path)
        try:
            if file.stat.size_bytes > limit_bytes:
                raise Conflict(
                    f"it has {file.stat.size_bytes} bytes, and there is room for {limit_bytes}",
                    state="too_large",
                    remedy="get it from the workspace while that is there",
                )
            sha256 = _copy(file, to)
            if sha256 and _still(files, path) == file.etag:
                return sha256, file.stat
        finally:
            file.close()
    raise Conflict("it changed while it was copied", state="changed", remedy="")


def _copy(file: OpenFile, to: Path) -> str:
    """The digest, "" where it became shorter meanwhile."""
    digest = hashlib.sha256()
    with disk_errors("artifacts"), to.open("wb") as copy:
        os.fchmod(copy.fileno(), 0o400)
        at, size_bytes = 0, file.stat.size_bytes
        while at < size_bytes:
            piece = file.read(at, min(_READ_BYTES, size_bytes - at))
            if not piece:
                return ""
            digest.update(piece)
            at += len(piece)
            if piece == _ZEROS[: len(piece)]:
                copy.seek(at)
            else:
                copy.write(piece)
        copy.truncate(size_bytes)
    return digest.hexdigest()


def _still(files: Files, path: str) -> str:
    """The etag of what has this name by now; "" = nothing one could open."""
    try:
        file = files.open(path)
    except CarrelError:
        return ""
    file.close()
    return file.etag
