"""The files of one execution, and what it left, for programs without an event loop. Carries out; decides nothing.

Every method says the same as its twin in `aio_files.py`; a test compares the two surfaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.client import file_requests, uploads
from orchestrator.client.changes import Change
from orchestrator.client.exchange import Body
from orchestrator.wire.files import Artifact, DifferenceAnswer, FileEntry, UnpackedAnswer
from orchestrator.workspace import ArchiveFormat

if TYPE_CHECKING:
    from orchestrator.client.sync import Client


class Files:
    """The workspace of one execution. Paths relative to /workspace."""

    def __init__(self, client: Client, id: str) -> None:
        self._client = client
        self._id = id

    def stat(self, path: str, *, snapshot: str = "") -> FileEntry:
        """One entry. Raises NotFound."""
        return self._client.call(file_requests.file_stat(self._id, path, snapshot=snapshot))

    def list(
        self, path: str = "", *, recursive: bool = False, glob: str = "", snapshot: str = ""
    ) -> Iterator[FileEntry]:
        """All entries of a directory in byte order, page by page; with `glob`, those anywhere below that fit."""
        after = ""
        while True:
            page = self._client.call(
                file_requests.files(self._id, path, recursive=recursive, glob=glob, after=after, snapshot=snapshot)
            )
            yield from page.entries
            after = page.next
            if not after:
                return

    def search(self, name: str, *, path: str = "", snapshot: str = "") -> Iterator[FileEntry]:
        """Entries anywhere below `path` whose own name has this in it, or fits it where it is a glob."""
        after = ""
        while True:
            page = self._client.call(file_requests.search(self._id, name, path=path, after=after, snapshot=snapshot))
            yield from page.entries
            after = page.next
            if not after:
                return

    def read(self, path: str, *, snapshot: str = "") -> bytes:
        """The whole file, in memory."""
        return b"".join(self.chunks(path, snapshot=snapshot))

    def chunks(self, path: str, *, snapshot: str = "") -> Iterator[bytes]:
        """The file in pieces, continued where a connection broke. Raises Conflict when it changed meanwhile."""
        return self._client.download(
            lambda offset, etag: file_requests.content(self._id, path, offset=offset, etag=etag, snapshot=snapshot)
        )

    def archive(self, path: str = "", *, format: ArchiveFormat = "tar", snapshot: str = "") -> Iterator[bytes]:
        """A directory as one archive, in pieces. Cannot be continued: a line that breaks is Unavailable."""
        return self._client.download(lambda *_: file_requests.archive(self._id, path, format, snapshot=snapshot))

    def unpack(self, path: str, body: Body, *, format: ArchiveFormat = "tar") -> UnpackedAnswer:
        """An archive into a directory: all of it is received and checked before any of it shows."""
        return self._client.call(file_requests.unpack(self._id, path, body, format))

    def write(
        self, path: str, body: Body, *, mode: int | None = None, if_match: str = "", if_absent: bool = False
    ) -> FileEntry:
        """Write whole or not at all. `if_match`: only over the content with this etag ("*" = any); `if_absent`: only
        where nothing is. Raises Changed."""
        return self._client.call(
            file_requests.write(self._id, path, body, mode=mode, if_match=if_match, if_absent=if_absent)
        )

    def mkdir(self, path: str) -> FileEntry:
        """A directory, with those above it; fine where it is there."""
        return self._client.call(file_requests.mkdir(self._id, path))

    def move(self, path: str, to: str, *, overwrite: bool = False) -> FileEntry:
        """Another name, in one step. Raises Conflict where `to` is there and may not be replaced."""
        return self._client.call(file_requests.move(self._id, path, to, overwrite=overwrite))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """A file, a link, an empty directory; or one with all in it."""
        self._client.call(file_requests.remove_file(self._id, path, recursive=recursive))

    def diff(
        self, before: str = "", after: str = "now", *, path: str = "", patch: bool = False
    ) -> Iterator[DifferenceAnswer]:
        """What differs between two snapshots, or one and "now"; `before` "" = its newest. `patch`: with unified
        diffs of texts."""
        start = ""
        while True:
            page = self._client.call(file_requests.diff(self._id, before, after, path=path, patch=patch, start=start))
            yield from page.changes
            start = page.next
            if not start:
                return

    def watch(self, path: str = "") -> Iterator[Change]:
        """What changes below a directory from now on, until it is gone. Raises NotFound, Conflict, TooMany."""
        return self._client.watch(file_requests.watch(self._id, path))

    def download(self, path: str, target: Path, *, snapshot: str = "") -> Path:
        """Into a file here: to a temporary name beside it, then renamed."""
        return uploads.save(self.chunks(path, snapshot=snapshot), target)


class Artifacts:
    """What the execution left in /workspace/artifacts."""

    def __init__(self, client: Client, id: str) -> None:
        self._client = client
        self._id = id

    def list(self) -> list[Artifact]:
        """All of them, with digests."""
        return self._client.call(file_requests.artifacts(self._id))

    def read(self, path: str) -> bytes:
        """One of them, in memory; `path` relative to /workspace/artifacts."""
        return b"".join(self.chunks(path))

    def chunks(self, path: str) -> Iterator[bytes]:
        """One of them in pieces."""
        return self._client.download(
            lambda offset, etag: file_requests.artifact(self._id, path, offset=offset, etag=etag)
        )

    def download(self, path: str, target: Path) -> Path:
        """Into a file here: to a temporary name beside it, then renamed."""
        return uploads.save(self.chunks(path), target)
