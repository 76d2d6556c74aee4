"""Uploaded files by digest: `blobs/<first two>/<sha256>`, whole and on disk before anything names them.

A name is the content's digest, so two uploads of the same bytes meet in one file and neither can damage it. Knows
nothing of executions; who still names a blob is told to `expire`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final

from orchestrator.durable import disk_errors, sync_folder
from orchestrator.errors import BadInput, NotFound

ABANDONED_S: Final = 24 * 3600  # a temporary file this old has no writer


class DirectoryBlobs:
    """The port `Blobs` on one folder, which several processes may share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, chunks: AsyncIterator[bytes], *, limit_bytes: int) -> tuple[str, int]:
        digest = hashlib.sha256()
        size_bytes = 0
        with disk_errors("blobs"):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=self._root)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file, disk_errors("blobs"):
                async for chunk in chunks:
                    size_bytes += len(chunk)
                    if size_bytes > limit_bytes:
                        raise BadInput(
                            f"the content has more than {limit_bytes} bytes",
                            field="content",
                            limit=f"<= {limit_bytes} bytes",
                            remedy="send a smaller file, or fetch it from inside the sandbox",
                        )
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(_flush, file)
            sha256 = digest.hexdigest()
            with disk_errors("blobs"):
                await asyncio.to_thread(self._publish, temporary, sha256)
        finally:
            temporary.unlink(missing_ok=True)  # noqa: ASYNC240 (must run when cancelled, too)
        return sha256, size_bytes

    def _publish(self, temporary: Path, sha256: str) -> None:
        target = self._file(sha256)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        temporary.rename(target)  # renews its age where it was there: `expire` must not take it now
        sync_folder(target.parent)
        sync_folder(self._root)

    async def has(self, sha256: str) -> int | None:
        try:
            return self._file(sha256).stat().st_size
        except (FileNotFoundError, NotFound):
            return None

    def path(self, sha256: str) -> Path:
        """Raises NotFound."""
        file = self._file(sha256)
        if not file.is_file():
            raise NotFound(f"no blob {sha256}", kind="blob", id=sha256)
        return file

    async def expire(self, keep: frozenset[str], older_than_s: float) -> int:
        return await asyncio.to_thread(self._expire, keep, older_than_s)

    def _expire(self, keep: frozenset[str], older_than_s: float) -> int:
        removed = 0
        now = time.time()
        for file in self._root.glob("??/*"):
            try:
                if file.name not in keep and now - file.stat().st_mtime >= older_than_s:
                    file.unlink()
                    removed += 1
            except FileNotFoundError:
                continue
        for file in self._root.glob(".tmp-*"):
            try:
                if now - file.stat().st_mtime >= ABANDONED_S:
                    file.unlink()
            except FileNotFoundError:
                continue
        return removed

    def _file(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise NotFound(f"{sha256!r} is no digest", kind="blob", id=sha256)
        return self._root / sha256[:2] / sha256


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
