"""The files of one execution, and what it left, for programs with an event loop: the twin of `sync_files.py`, where
each method is described. Carries out; decides nothing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.client import file_requests, uploads
from orchestrator.client.changes import Change
from orchestrator.client.exchange import Body
from orchestrator.wire.files import Artifact, DifferenceAnswer, FileEntry, UnpackedAnswer
from orchestrator.workspace import ArchiveFormat

if TYPE_CHECKING:
    from orchestrator.client.aio import AsyncClient


class AsyncFiles:
    """The workspace of one execution. Paths relative to /workspace."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self._client = client
        self._id = id

    async def stat(self, path: str, *, snapshot: str = "") -> FileEntry:
        """See sync_files.Files.stat."""
        return await self._client.call(file_requests.file_stat(self._id, path, snapshot=snapshot))

    async def list(
        self, path: str = "", *, recursive: bool = False, glob: str = "", snapshot: str = ""
    ) -> AsyncGenerator[FileEntry, None]:
        """See sync_files.Files.list."""
        after = ""
        while True:
            page = await self._client.call(
                file_requests.files(self._id, path, recursive=recursive, glob=glob, after=after, snapshot=snapshot)
            )
            for one in page.entries:
                yield one
            after = page.next
            if not after:
                return

    async def search(self, name: str, *, path: str = "", snapshot: str = "") -> AsyncGenerator[FileEntry, None]:
        """See sync_files.Files.search."""
        after = ""
        while True:
            page = await self._client.call(
                file_requests.search(self._id, name, path=path, after=after, snapshot=snapshot)
            )
            for one in page.entries:
                yield one
            after = page.next
            if not after:
                return

    async def read(self, path: str, *, snapshot: str = "") -> bytes:
        """See sync_files.Files.read."""
        return b"".join([piece async for piece in self.chunks(path, snapshot=snapshot)])

    def chunks(self, path: str, *, snapshot: str = "") -> AsyncGenerator[bytes, None]:
        """See sync_files.Files.chunks."""
        return self._client.download(
            lambda offset, etag: file_requests.content(self._id, path, offset=offset, etag=etag, snapshot=snapshot)
        )

    def archive(
        self, path: str = "", *, format: ArchiveFormat = "tar", snapshot: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """See sync_files.Files.archive."""
        return self._client.download(lambda *_: file_requests.archive(self._id, path, format, snapshot=snapshot))

    async def unpack(self, path: str, body: Body, *, format: ArchiveFormat = "tar") -> UnpackedAnswer:
        """See sync_files.Files.unpack."""
        return await self._client.call(file_requests.unpack(self._id, path, body, format))

    async def write(
        self, path: str, body: Body, *, mode: int | None = None, if_match: str = "", if_absent: bool = False
    ) -> FileEntry:
        """See sync_files.Files.write."""
        return await self._client.call(
            file_requests.write(self._id, path, body, mode=mode, if_match=if_match, if_absent=if_absent)
        )

    async def mkdir(self, path: str) -> FileEntry:
        """See sync_files.Files.mkdir."""
        return await self._client.call(file_requests.mkdir(self._id, path))

    async def move(self, path: str, to: str, *, overwrite: bool = False) -> FileEntry:
        """See sync_files.Files.move."""
        return await self._client.call(file_requests.move(self._id, path, to, overwrite=overwrite))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """See sync_files.Files.remove."""
        await self._client.call(file_requests.remove_file(self._id, path, recursive=recursive))

    async def diff(
        self, before: str = "", after: str = "now", *, path: str = "", patch: bool = False
    ) -> AsyncGenerator[DifferenceAnswer, None]:
        """See sync_files.Files.diff."""
        start = ""
        while True:
            page = await self._client.call(
                file_requests.diff(self._id, before, after, path=path, patch=patch, start=start)
            )
            for one in page.changes:
                yield one
            start = page.next
            if not start:
                return

    def watch(self, path: str = "") -> AsyncGenerator[Change, None]:
        """See sync_files.Files.watch."""
        return self._client.watch(file_requests.watch(self._id, path))

    async def download(self, path: str, target: Path, *, snapshot: str = "") -> Path:
        """See sync_files.Files.download."""
        async with aclosing(self.chunks(path, snapshot=snapshot)) as pieces:
            return await uploads.save_async(pieces, target)


class AsyncArtifacts:
    """What the execution left in /workspace/artifacts."""

    def __init__(self, client: AsyncClient, id: str) -> None:
        self._client = client
        self._id = id

    async def list(self) -> list[Artifact]:
        """See sync_files.Artifacts.list."""
        return await self._client.call(file_requests.artifacts(self._id))

    async def read(self, path: str) -> bytes:
        """See sync_files.Artifacts.read."""
        return b"".join([piece async for piece in self.chunks(path)])

    def chunks(self, path: str) -> AsyncGenerator[bytes, None]:
        """See sync_files.Artifacts.chunks."""
        return self._client.download(
            lambda offset, etag: file_requests.artifact(self._id, path, offset=offset, etag=etag)
        )

    async def download(self, path: str, target: Path) -> Path:
        """See sync_files.Artifacts.download."""
        async with aclosing(self.chunks(path)) as pieces:
            return await uploads.save_async(pieces, target)
