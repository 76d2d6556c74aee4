"""Local content on its way up or down: its digest, its mode, and saving a download whole or not at all. Knows no
network."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import stat
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import CarrelError


@dataclass(frozen=True, slots=True)
class Source:
    """Content for one path of a workspace."""

    path: str
    body: bytes | Path
    sha256: str
    mode: int

    @property
    def entry(self) -> Mapping[str, Any]:
        """As POST /executions takes it in `files`."""
        return {"path": self.path, "sha256": self.sha256, "mode": f"{self.mode:04o}"}


def source(content: bytes | Path, path: str, *, mode: int | None = None) -> Source:
    """Reads it once for its digest. Of a file's own mode only "executable" is kept: 0755 or 0644."""
    if isinstance(content, bytes):
        return Source(path, content, hashlib.sha256(content).hexdigest(), 0o644 if mode is None else mode)
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if mode is None:
            mode = 0o755 if os.fstat(file.fileno()).st_mode & stat.S_IXUSR else 0o644
    return Source(path, content, digest, mode)


def check(file: Source, stored: str) -> None:
    """Raises CarrelError when what the server stored is not what was read for the digest."""
    if stored != file.sha256:
        raise CarrelError(f"{file.body if isinstance(file.body, Path) else file.path} changed while it was uploaded")


def temporary(target: Path) -> Path:
    """A name beside `target` nobody else uses."""
    return target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.part")


def save(pieces: Iterable[bytes], target: Path) -> Path:
    """Write all pieces to `target`, whole or not at all."""
    part = temporary(target)
    try:
        with part.open("xb") as file:
            for piece in pieces:
                file.write(piece)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return target


async def save_async(pieces: AsyncIterator[bytes], target: Path) -> Path:
    """The same, of pieces that come through an event loop."""
    part = temporary(target)
    try:
        with await asyncio.to_thread(part.open, "xb") as file:
            async for piece in pieces:
                await asyncio.to_thread(file.write, piece)
        await asyncio.to_thread(part.replace, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return target
