"""The files of one execution, and what it left, for programs without an event loop. Carries out; decides nothing.

Every method says the same as its twin in `aio_files.py`; a test compares the two surfaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.client import requests, uploads
from orchestrator.client.exchange import Body
from orchestrator.wire.files import Artifact, FileEntry

if TYPE_CHECKING:
    from orchestrator.client.sync import Client


class Files:
    """The workspace of one execution. Paths relative to /workspace."""

    def __init__(self, client: Client, id: str) -> None:
        self._client = client
        self._id = id

    def stat(self, path: str) -> FileEntry:
        """One entry. Raises NotFound."""
        return self._client.call(requests.file_stat(self._id, path))

    def list(self, path: str = "", *, recursive: bool = False) -> Iterator[FileEntry]:
        """All entries of a directory in byte order, page by page."""
        after = ""
        while True:
            page = self._client.call(requests.files(self._id, path, recursive=recursive, after=after))
            yield from page.entries
            after = page.next
            if not after:
                return

    def read(self, path: str) -> bytes:
        """The whole file, in memory."""
        return b"".join(self.chunks(path))

    def chunks(self, path: str) -> Iterator[bytes]:
        """The file in pieces, continued where a connection broke. Raises Conflict when it changed meanwhile."""
        return self._client.download(lambda offset, etag: requests.content(self._id, path, offset=offset, etag=etag))

    def write(self, path: str, body: Body, *, mode: int | None = None) -> FileEntry:
        """Write whole or not at all."""
        return self._client.call(requests.write(self._id, path, body, mode=mode))

    def download(self, path: str, target: Path) -> Path:
        """Into a file here: to a temporary name beside it, then renamed."""
        return uploads.save(self.chunks(path), target)


class Artifacts:
    """What the execution left in /workspace/artifacts."""

    def __init__(self, client: Client, id: str) -> None:
        self._client = client
        self._id = id

    def list(self) -> list[Artifact]:
        """All of them, with digests."""
        return self._client.call(requests.artifacts(self._id))

    def read(self, path: str) -> bytes:
        """One of them, in memory; `path` relative to /workspace/artifacts."""
        return b"".join(self.chunks(path))

    def chunks(self, path: str) -> Iterator[bytes]:
        """One of them in pieces."""
        return self._client.download(lambda offset, etag: requests.artifact(self._id, path, offset=offset, etag=etag))

    def download(self, path: str, target: Path) -> Path:
        """Into a file here: to a temporary name beside it, then renamed."""
        return uploads.save(self.chunks(path), target)
