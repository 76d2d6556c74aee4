"""Workspace entries, uploads and artifacts as JSON. Knows no directory."""

from __future__ import annotations

import base64
import os
from typing import Literal

from pydantic import ConfigDict, Field

from orchestrator.shelf import Kept
from orchestrator.wire.shape import AnswerModel, Moment
from orchestrator.workspace import FileStat, Unpacked


class FileEntry(AnswerModel):
    """`path` relative to /workspace. Where a name's bytes are not UTF-8, `path` shows them replaced and `path_b64` has
    them exactly. `mode` is octal text. `etag` of a file, as it goes into If-Match."""

    path: str
    path_b64: str | None = None
    kind: Literal["file", "directory", "symlink", "other"]
    size_bytes: int
    mode: str
    modified_at: Moment
    target: str = ""
    etag: str = ""

    @classmethod
    def of(cls, stat: FileStat) -> FileEntry:
        shown, exact = _name(stat.path)
        return cls(
            path=shown,
            path_b64=exact,
            kind=stat.kind,
            size_bytes=stat.size_bytes,
            mode=f"{stat.mode & 0o7777:04o}",
            modified_at=stat.modified_at,
            target=_name(stat.target)[0],
            etag=f'"{stat.etag}"' if stat.etag else "",
        )


class FilePage(AnswerModel):
    """Entries in byte order of their path; `next` goes into `?after=`, "" at the end."""

    entries: list[FileEntry]
    next: str = ""


class DifferenceAnswer(AnswerModel):
    """One path. `before` or `after` null = not there. `patch`: hunks of a unified diff; null where there is none."""

    change: Literal["added", "removed", "changed"]
    path: str
    path_b64: str | None = None
    before: FileEntry | None = None
    after: FileEntry | None = None
    patch: str | None = None

    @classmethod
    def of(
        cls,
        change: Literal["added", "removed", "changed"],
        before: FileStat | None,
        after: FileStat | None,
        patch: str | None,
    ) -> DifferenceAnswer:
        old = FileEntry.of(before) if before else None
        new = FileEntry.of(after) if after else None
        there = new or old
        assert there is not None  # it is on one side at least
        return cls(change=change, path=there.path, path_b64=there.path_b64, before=old, after=new, patch=patch)


class DifferencePage(AnswerModel):
    """In byte order of the paths; `next` goes into `?after=`, "" at the end."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    from_: str = Field(alias="from")
    to: str
    changes: list[DifferenceAnswer]
    next: str = ""


class UnpackedAnswer(AnswerModel):
    """What came out of an archive."""

    files: int
    directories: int
    links: int
    size_bytes: int

    @classmethod
    def of(cls, done: Unpacked) -> UnpackedAnswer:
        return cls(files=done.files, directories=done.directories, links=done.links, size_bytes=done.size_bytes)


class Blob(AnswerModel):
    """Content that is here, by digest."""

    sha256: str
    size_bytes: int


class Artifact(AnswerModel):
    """A file left in /workspace/artifacts; `path` relative to it, or to /workspace of one elsewhere that the harness
    named. `sha256` is null where the file is too large to be read for a listing. `refused`: why it was not kept."""

    path: str
    path_b64: str | None = None
    size_bytes: int
    modified_at: Moment
    sha256: str | None = None
    refused: str = ""

    @classmethod
    def kept(cls, one: Kept) -> Artifact:
        shown, exact = _name(one.path)
        return cls(
            path=shown,
            path_b64=exact,
            size_bytes=one.size_bytes,
            modified_at=one.modified_at,
            sha256=one.sha256 or None,
            refused=one.refused.encode(errors="replace").decode(),
        )

    @classmethod
    def of(cls, path: str, stat: FileStat, sha256: str | None) -> Artifact:
        shown, exact = _name(path)
        return cls(path=shown, path_b64=exact, size_bytes=stat.size_bytes, modified_at=stat.modified_at, sha256=sha256)


class Artifacts(AnswerModel):
    artifacts: list[Artifact]
    truncated: bool = False


def _name(path: str) -> tuple[str, str | None]:
    raw = os.fsencode(path)
    try:
        return raw.decode(), None
    except UnicodeDecodeError:
        return raw.decode(errors="replace"), base64.b64encode(raw).decode("ascii")
