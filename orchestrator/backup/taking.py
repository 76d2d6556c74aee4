"""A backup of an installation that goes on working: the store's lines, then the files they name that are on this host.

Nothing is stopped and nothing is locked. A snapshot's files do not change; one that is removed meanwhile is named as
gone. Does not know what a line means, nor where a snapshot's files lie.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from orchestrator import __version__
from orchestrator.backup.format import ARTIFACTS, BLOBS, MOST_NAMED, PIECE_BYTES, RECORDS, SNAPSHOTS, Contents, Head
from orchestrator.backup.writing import Writer
from orchestrator.clock import Clock
from orchestrator.dump import EXECUTION, SNAPSHOT, Dump, Line
from orchestrator.errors import CarrelError, NotFound
from orchestrator.shelf import Shelf
from orchestrator.workspace import Blobs, SnapshotStore

logger = logging.getLogger(__name__)

_READ_BYTES: Final = PIECE_BYTES


@dataclass(frozen=True, slots=True)
class Sources:
    """What a backup is taken of. `host`: whose snapshots are in `store`, and whose shelf it is."""

    dump: Dump
    store: SnapshotStore
    blobs: Blobs
    shelf: Shelf
    clock: Clock
    installation: str
    host: str


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken."""

    head: Head
    contents: Contents


async def take(
    sources: Sources, out: BinaryIO, *, files: bool = True, progress: Callable[[str], None] = lambda name: None
) -> Taken:
    """Write a backup. Without `files` of records only: where the snapshots are safe elsewhere. Raises StoreUnavailable,
    OSError; what was written then has no manifest."""
    head = Head(__version__, sources.installation, sources.host, sources.clock.now().isoformat())
    return await _Taking(sources, Writer(out, head), head, files, progress).run()


class _Taking:
    def __init__(
        self, sources: Sources, writer: Writer, head: Head, files: bool, progress: Callable[[str], None]
    ) -> None:
        self._sources = sources
        self._writer = writer
        self._head = head
        self._files = files
        self._progress = progress
        self._records = self._whole = self._artifacts = 0
        self._executions: set[str] = set()
        self._here: list[str] = []
        self._blobs: set[str] = set()
        self._elsewhere: list[str] = []
        self._elsewhere_count = 0
        self._gone: list[str] = []

    async def run(self) -> Taken:
        await self._lines()
        if self._files:
            for digest in sorted(self._blobs):
                await self._blob(digest)
            for snapshot_id in self._here:
                await self._snapshot(snapshot_id)
            for execution_id, _ in await self._sources.shelf.list():
                if execution_id in self._executions:
                    await self._shelved(execution_id)
        contents = Contents(
            executions=len(self._executions),
            snapshots=self._records,
            snapshot_files=self._whole,
            blobs=len(self._blobs) if self._files else 0,
            artifacts=self._artifacts,
            elsewhere=tuple(self._elsewhere),
            elsewhere_count=self._elsewhere_count,
            gone=tuple(self._gone),
        )
        return Taken(self._head, await asyncio.to_thread(self._writer.close, contents))

    # -- lines ------------------------------------------------------------------------------------------------------

    async def _lines(self) -> None:
        waiting = bytearray()
        n = 0
        async for line in self._sources.dump.lines():
            self._look(line)
            waiting += json.dumps(line, separators=(",", ":")).encode() + b"\n"
            if len(waiting) >= PIECE_BYTES:
                n += 1
                await self._add(f"{RECORDS}/{n:08}.jsonl", bytes(waiting))
                waiting.clear()
        if waiting:
            await self._add(f"{RECORDS}/{n + 1:08}.jsonl", bytes(waiting))

    def _look(self, line: Line) -> None:
        """What files belong to it."""
        if line["of"] == EXECUTION:
            self._executions.add(line["id"])
            if line["record"]["state"] != "FINISHED":
                spec: dict[str, Any] = json.loads(line["record"]["spec"])
                self._blobs.update(file["sha256"] for file in spec.get("files", ()))
        elif line["of"] == SNAPSHOT:
            self._records += 1
            if line["fields"].get("host") == self._sources.host:
                self._here.append(line["id"])
            elif line["fields"].get("archived") != "1":
                self._elsewhere_count += 1
                if len(self._elsewhere) < MOST_NAMED:
                    self._elsewhere.append(line["id"])

    # -- files ------------------------------------------------------------------------------------------------------

    async def _blob(self, digest: str) -> None:
        try:
            path = self._sources.blobs.path(digest)
        except NotFound:
            logger.warning("an uploaded file is not here: not in the backup", extra={"sha256": digest})
            self._blobs.discard(digest)
            return
        with await asyncio.to_thread(path.open, "rb") as file:
            n = 0
            while data := await asyncio.to_thread(file.read, _READ_BYTES):
                n += 1
                await self._add(f"{BLOBS}/{digest}/{n:08}", data)
            if not n:
                await self._add(f"{BLOBS}/{digest}/{1:08}", b"")

    async def _snapshot(self, snapshot_id: str) -> None:
        n = 0
        try:
            packed = self._sources.store.pack(snapshot_id)
            try:
                whole = _in_pieces(packed)
                while data := await asyncio.to_thread(next, whole, b""):
                    n += 1
                    await self._add(f"{SNAPSHOTS}/{snapshot_id}/{n:08}", data)
            finally:
                await asyncio.to_thread(packed.close)
        except (CarrelError, OSError) as failure:
            if isinstance(failure, OSError) and await self._holds(snapshot_id):
                raise
            logger.warning("a snapshot is not in the backup", extra={"snapshot": snapshot_id, "why": str(failure)})
            self._gone.append(snapshot_id)
        else:
            self._whole += 1

    async def _shelved(self, execution_id: str) -> None:
        packed = self._sources.shelf.pack(execution_id)
        n, last = 0, ""
        try:
            while (piece := await asyncio.to_thread(next, packed, None)) is not None:
                name, data = piece
                n, last = (n + 1 if name == last else 1), name
                await self._add(f"{ARTIFACTS}/{execution_id}/{name}/{n:08}", data)
        except NotFound:
            return  # removed since it was listed
        finally:
            await asyncio.to_thread(packed.close)
        self._artifacts += 1

    async def _holds(self, snapshot_id: str) -> bool:
        return any(here == snapshot_id for here, _ in await self._sources.store.snapshots())

    async def _add(self, name: str, data: bytes) -> None:
        await asyncio.to_thread(self._writer.add, name, data)
        self._progress(name)


def _in_pieces(chunks: Iterator[bytes]) -> Iterator[bytes]:
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        while len(waiting) >= PIECE_BYTES:
            yield bytes(waiting[:PIECE_BYTES])
            del waiting[:PIECE_BYTES]
    if waiting:
        yield bytes(waiting)
