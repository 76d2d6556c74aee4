"""Files on their way down: one file, or a directory with all that is in it. What a workspace holds is hostile: nothing
is ever written outside the place a person named, and links are not made.
"""

from __future__ import annotations

import base64
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from orchestrator.errors import BadInput, CarrelError

if TYPE_CHECKING:
    from orchestrator.client import Execution
    from orchestrator.client.nouns import Artifact, FileEntry

Wish = tuple[str, Path]

LEFT_OUT = ".carrel-left-out.txt"  # the server's note of what an archive lacks
NOTE_BYTES = 1 << 20
READ_BYTES = 256 * 1024


def wish(text: str) -> Wish:
    """`PATH[:DST]` → (path in the workspace, where to). Without DST: its own name, here."""
    path, colon, place = text.partition(":")
    path = in_workspace(path)
    if not colon or not place:
        return path, Path(PurePosixPath(path).name or ".")
    return path, Path(place)


def in_workspace(path: str) -> str:
    """`/workspace/a` and `a` are the same; `""` is the workspace itself."""
    if path == "/workspace" or path.startswith("/workspace/"):
        path = path.removeprefix("/workspace")
        return path.strip("/")
    return path.rstrip("/") if path not in (".", "./", "/") else ""


def exact(entry: FileEntry | Artifact) -> str:
    """The entry's path, with bytes that are not UTF-8 as surrogateescape."""
    if entry.path_b64:
        return os.fsdecode(base64.b64decode(entry.path_b64))
    return entry.path


def inside(target: Path, relative: str) -> Path:
    """`target/relative`, and nowhere else. Raises CarrelError for a name that would lead out."""
    parts = PurePosixPath(relative).parts
    if not parts or relative.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in relative:
        raise CarrelError(f"the server named a file {relative!r}: it is not written", remedy="fetch it by its path")
    path = target
    for part in parts[:-1]:
        path = path / part
        if path.is_symlink():
            raise CarrelError(
                f"{path} is a link: nothing is written through it", remedy="remove it, or name another place"
            )
    return path / parts[-1]


def fetch(execution: Execution, path: str, target: Path, *, say: Callable[[str], None]) -> int:
    """`path` of the workspace into `target` as cp does it (into it, when it is a directory); how many files came."""
    entry = execution.files.stat(path) if path else None
    name = PurePosixPath(path).name
    if entry is not None and entry.kind == "file":
        place = target / name if target.is_dir() else target
        place.parent.mkdir(parents=True, exist_ok=True)
        execution.files.download(path, place)
        _mode(place, entry)
        return 1
    if entry is not None and entry.kind != "directory":
        raise BadInput(
            f"{path} is a {entry.kind}", field="path", limit="a file or a directory", remedy="name what it leads to"
        )
    root = target / name if name and target.is_dir() else target
    root.mkdir(parents=True, exist_ok=True)
    return _directory(execution, path, root, say)


def _directory(execution: Execution, path: str, root: Path, say: Callable[[str], None]) -> int:
    """As one tar, of which only names, kinds and contents are taken: each file is made here, by us."""
    count = skipped = 0
    from orchestrator.client import uploads  # with the client, when it is needed

    coming: Any = _Reader(execution.files.archive(path))
    with _ours(), tarfile.open(None, "r|", fileobj=coming) as archive:
        for member in archive:
            vars(archive)["members"].clear()  # it would keep them all
            if member.isdir():
                inside(root, member.name).mkdir(parents=True, exist_ok=True)
            elif member.name == LEFT_OUT and (note := archive.extractfile(member)):
                for line in note.read(NOTE_BYTES).decode(errors="replace").splitlines():
                    say(f"left out: {line}")
            elif member.isreg() and (content := archive.extractfile(member)):
                place = inside(root, member.name)
                place.parent.mkdir(parents=True, exist_ok=True)
                uploads.save(iter(lambda: content.read(READ_BYTES), b""), place)
                if member.mode & 0o100:
                    place.chmod(place.stat().st_mode | 0o111 & ~_umask())
                count += 1
            else:
                skipped += 1
    if skipped:
        say(f"{skipped} links under {path or '/workspace'} were left out")
    return count


@contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as broken:
        raise CarrelError(f"the directory did not come whole: {broken}", remedy="copy it again") from broken


class _Reader:
    """Pieces as something to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def _mode(place: Path, entry: FileEntry) -> None:
    if int(entry.mode, 8) & 0o100:
        place.chmod(place.stat().st_mode | 0o111 & ~_umask())


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
