"""Files on their way down: one file, or a directory with all that is in it. What a workspace holds is hostile: nothing
is ever written outside the place a person named, and links are not made.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from orchestrator.errors import BadInput, CarrelError

if TYPE_CHECKING:
    from orchestrator.client import Execution
    from orchestrator.client.nouns import Artifact, FileEntry

Wish = tuple[str, Path]


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
    count, skipped = 0, 0
    prefix = path + "/" if path else ""
    for entry in execution.files.list(path, recursive=True):
        full = exact(entry)
        relative = full.removeprefix(prefix)
        if entry.kind == "directory":
            inside(root, relative).mkdir(parents=True, exist_ok=True)
        elif entry.kind == "file":
            place = inside(root, relative)
            place.parent.mkdir(parents=True, exist_ok=True)
            execution.files.download(full, place)
            _mode(place, entry)
            count += 1
        else:
            skipped += 1
    if skipped:
        say(f"{skipped} links and special files under {path or '/workspace'} were left out")
    return count


def _mode(place: Path, entry: FileEntry) -> None:
    if int(entry.mode, 8) & 0o100:
        place.chmod(place.stat().st_mode | 0o111 & ~_umask())


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
