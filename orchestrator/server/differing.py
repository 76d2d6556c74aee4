"""What differs between two workspaces, or two moments of one: both listed in byte order and walked side by side, in
bounded memory. Knows only the port of files.

Content is compared where size, or time of change, or neither says enough: the same size and the same time to the
microsecond count as the same, as for rsync; files of another time that are too large to read for this count as changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from orchestrator.errors import CarrelError, Conflict, NotFound
from orchestrator.server.unified import MOST_BYTES, is_text, unified
from orchestrator.workspace import Files, FileStat

_PAGE: Final = 1000
_READ_BYTES: Final = 1 << 20
_COMPARED_BYTES: Final = 2 << 30  # so much is read for one page; the next goes on. A larger file is not read: a sparse
# terabyte costs whoever made it nothing, and would cost us minutes
_PATCHED_BYTES: Final = 4 << 20
_LOOKED_AT: Final = 200_000


@dataclass(frozen=True, slots=True)
class Difference:
    """`before`, `after` None = not there. `patch` None = not asked for, or no text, or too much of it."""

    change: Literal["added", "removed", "changed"]
    before: FileStat | None
    after: FileStat | None
    patch: str | None = None


def differences(
    before: Files, after: Files, path: str, *, start: str, limit: int, patch: bool
) -> tuple[list[Difference], str]:
    """Those below `path` after the path `start`, and where the next page starts ("" = there is none). Blocking."""
    found: list[Difference] = []
    compared = patched = looked = 0
    last = ""
    for old, new in _side_by_side(_entries(before, path, start), _entries(after, path, start)):
        if len(found) >= limit or compared > _COMPARED_BYTES or patched > _PATCHED_BYTES or looked >= _LOOKED_AT:
            return found, last
        looked += 1
        there = new or old
        assert there is not None
        last = there.path
        if old and new:
            if old.kind == new.kind == "file" and old.size_bytes == new.size_bytes:
                differ = old.modified_at != new.modified_at
                if differ and old.size_bytes <= _COMPARED_BYTES:
                    compared += 2 * old.size_bytes
                    differ = _content_differs(before, after, old, new)
            else:
                differ = old.kind != new.kind or (old.kind == "file") or old.target != new.target
            if not differ and old.mode == new.mode:
                continue
        text = _patch(before, after, old, new) if patch and there.kind == "file" else None
        patched += len(text or "")
        found.append(Difference("changed" if old and new else "added" if new else "removed", old, new, text))
    return found, ""


def _entries(files: Files, path: str, start: str) -> Iterator[FileStat]:
    while True:
        try:
            page = files.list(path, recursive=True, after=start, limit=_PAGE)
        except (NotFound, Conflict):
            return  # no such folder on this side
        yield from page
        if len(page) < _PAGE:
            return
        start = page[-1].path


def _side_by_side(
    before: Iterator[FileStat], after: Iterator[FileStat]
) -> Iterator[tuple[FileStat | None, FileStat | None]]:
    old, new = next(before, None), next(after, None)
    while old or new:
        if old and new and old.path == new.path:
            yield old, new
            old, new = next(before, None), next(after, None)
        elif new is None or (old and _key(old) < _key(new)):
            yield old, None
            old = next(before, None)
        else:
            yield None, new
            new = next(after, None)


def _key(stat: FileStat) -> bytes:
    return stat.path.encode(errors="surrogateescape")


def _content_differs(before: Files, after: Files, old: FileStat, new: FileStat) -> bool:
    try:
        one = before.open(_absolute(old.path))
    except CarrelError:
        return True  # exchanged since it was listed
    try:
        other = after.open(_absolute(new.path))
    except CarrelError:
        one.close()
        return True
    try:
        at = 0
        while True:
            piece = one.read(at, _READ_BYTES)
            if piece != other.read(at, _READ_BYTES):
                return True
            if not piece:
                return False
            at += len(piece)
    finally:
        one.close()
        other.close()


def _patch(before: Files, after: Files, old: FileStat | None, new: FileStat | None) -> str | None:
    old_text, new_text = _text(before, old), _text(after, new)
    if old_text is None or new_text is None:
        return None
    return unified(old_text, new_text)


def _text(files: Files, stat: FileStat | None) -> bytes | None:
    if stat is None:
        return b""
    if stat.kind != "file" or stat.size_bytes > MOST_BYTES:
        return None
    try:
        file = files.open(_absolute(stat.path))
    except CarrelError:
        return None
    try:
        content = b""
        while piece := file.read(len(content), MOST_BYTES + 1 - len(content)):
            content += piece
    finally:
        file.close()
    return content if is_text(content) else None


def _absolute(path: str) -> str:
    return path if path.startswith("/") else "/workspace/" + path
