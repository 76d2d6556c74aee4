"""The files of one execution, and what it left, for programs with an event loop: the twin of `sync_files.py`, where
each method is described. Carries out; decides nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.client import requests, uploads
from orchestrator.client.exchange import Body
from orchestrator.wire.files import Artifact, FileEntry

if TYPE_CHECKING:
    from orchestrator.client.aio import AsyncClient


class AsyncFiles:
    """The workspace of one execution. Paths relative to /workspace."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self._client = client
        self._id = id

    async def stat(self, path: str) -> FileEntry:
        """See sync_files.Files.stat."""
        return await self._client.call(requests.file_stat(self._id, path))

    async def list(self, path: str = "", *, recursive: bool = False) -> AsyncGenerator[FileEntry, None]:
        """See sync_files.Files.list."""
        after = ""
        while True:
            page = await self._client.call(requests.files(self._id, path, recursive=recursive, after=after))
            for entry in page.entries:
                yield entry
            after = page.next
            if not after:
                return

    async def read(self, path: str) -> bytes:
        """See sync_files.Files.read."""
        return b"".join([piece async for piece in self.chunks(path)])

    def chunks(self, path: str) -> AsyncGenerator[bytes, None]:
        """See sync_files.Files.chunks."""
        return self._client.download(lambda offset, etag: requests.content(self._id, path, offset=offset, etag=etag))

    async def write(self, path: str, body: Body, *, mode: int | None = None) -> FileEntry:
        """See sync_files.Files.write."""
        return await self._client.call(requests.write(self._id, path, body, mode=mode))

    async def download(self, path: str, target: Path) -> Path:
        """See sync_files.Files.download."""
        async with aclosing(self.chunks(path)) as pieces:
            return await uploads.save_async(pieces, target)


class AsyncArtifacts:
    """What the execution left in /workspace/artifacts."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self._client = client
        self._id = id

    async def list(self) -> list[Artifact]:
        """See sync_files.Artifacts.list."""
        return await self._client.call(requests.artifacts(self._id))

    async def read(self, path: str) -> bytes:
        """See sync_files.Artifacts.read."""
        return b"".join([piece async for piece in self.chunks(path)])

    def chunks(self, path: str) -> AsyncGenerator[bytes, None]:
        """See sync_files.Artifacts.chunks."""
        return self._client.download(lambda offset, etag: requests.artifact(self._id, path, offset=offset, etag=etag))

    async def download(self, path: str, target: Path) -> Path:
        """See sync_files.Artifacts.download."""
        async with aclosing(self.chunks(path)) as pieces:
            return await uploads.save_async(pieces, target)
