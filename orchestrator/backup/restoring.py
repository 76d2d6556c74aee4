"""A backup into an empty installation: read whole first, then written. Any crash in between is gone over again.

Does not know what a line means. Nothing is written before every piece was compared with its digest, and nobody works on
the store before all of it is there.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from orchestrator.backup.format import ARTIFACTS, BLOBS, RECORDS, SNAPSHOTS, Contents, Head, damaged
from orchestrator.backup.reading import Piece, Reader, verified
from orchestrator.dump import SNAPSHOT, Load, Loaded
from orchestrator.errors import Conflict
from orchestrator.sandbox import SandboxDriver
from orchestrator.shelf import Shelf
from orchestrator.workspace import Blobs, SnapshotStore

logger = logging.getLogger(__name__)

QUIET_S = 6.0  # whoever works asks for work every five seconds


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of it. `corrupt`: snapshots that were not what their record says already when they were backed up: used
    by nobody, the ones before them are."""

    head: Head
    contents: Contents
    loaded: Loaded
    corrupt: tuple[str, ...] = field(default=())


async def restore(
    file: BinaryIO,
    load: Load,
    store: SnapshotStore,
    blobs: Blobs,
    shelf: Shelf,
    driver: SandboxDriver,
    *,
    host: str,
    end_sandboxes: bool = False,
    quiet_s: float = QUIET_S,
    progress: Callable[[str], None] = lambda name: None,
) -> Restored:
    """`file` is read twice: it must be one that can be. `end_sandboxes`: what runs here under this installation's label
    is ended first; without it that is a Conflict, since it would run beside what is restored. Raises BadInput(field=
    "file") for a damaged one, Conflict as `Load.begin`, StoreUnavailable, EngineUnavailable, DiskFull, OSError."""
    whole = await asyncio.to_thread(verified, file, progress=lambda done: progress(f"verified {done} bytes"))
    await _nothing_runs(driver, end_sandboxes)
    head, contents = whole.head, whole.contents
    await load.begin(contents.chain, host_was=head.host, host=host, quiet_s=quiet_s)
    here = {snapshot_id for snapshot_id, _ in await store.snapshots()}
    file.seek(0)
    restoring = _Restoring(load, store, blobs, shelf, frozenset(whole.files | here), frozenset(contents.gone), progress)
    await restoring.run(Reader(file))
    loaded = await load.finish(taken_at=head.moment)
    return Restored(head, contents, loaded, tuple(restoring.corrupt))


async def _nothing_runs(driver: SandboxDriver, end: bool) -> None:
    found = await driver.list()
    if found and not end:
        raise Conflict(
            f"{len(found)} sandboxes of this installation are on this host, {found[0].sandbox_id} for one: they would"
            " run beside what is restored",
            state="running",
            remedy="restore with --end-sandboxes, which ends them; or under another installation name",
        )
    for box in found:
        logger.warning("ending a sandbox", extra={"sandbox": box.sandbox_id})
        await driver.remove(box.sandbox_id)


class _Restoring:
    def __init__(
        self,
        load: Load,
        store: SnapshotStore,
        blobs: Blobs,
        shelf: Shelf,
        files: frozenset[str],
        gone: frozenset[str],
        progress: Callable[[str], None],
    ) -> None:
        self._load = load
        self._store = store
        self._blobs = blobs
        self._shelf = shelf
        self._files = files
        self._gone = gone
        self._progress = progress
        self._digests: dict[str, str] = {}
        self.corrupt: list[str] = []

    async def run(self, reader: Reader) -> None:
        pieces = _Ahead(iter(reader))
        while (first := await asyncio.to_thread(pieces.look)) is not None:
            kind, whose = first.of
            self._progress(first.name)
            if kind == RECORDS:
                await self._lines(pieces)
            elif kind == BLOBS:
                await self._blobs.put(_asynchronous(pieces.of(first.of)), limit_bytes=1 << 62)
            elif kind == SNAPSHOTS and whose not in self._gone:
                await self._snapshot(whose, pieces.of(first.of))
            elif kind == ARTIFACTS:
                execution_id = whose.partition("/")[0]
                await self._shelf.load(execution_id, pieces.below(ARTIFACTS, execution_id))
            else:  # what went while it was read is not whole; what a later release adds, this one cannot place
                await asyncio.to_thread(_pass_over, pieces.of(first.of))

    async def _lines(self, pieces: _Ahead) -> None:
        piece = pieces.take()
        for text in piece.data.splitlines():
            try:
                line = json.loads(text)
            except ValueError as wrong:
                raise damaged(str(wrong), piece=piece.name) from None
            if line.get("of") == SNAPSHOT and (digest := line["fields"].get("digest")):
                self._digests[line["id"]] = digest
            await self._load.add(line, files=self._files)

    async def _snapshot(self, snapshot_id: str, chunks: Iterator[bytes]) -> None:
        await self._store.load(snapshot_id, [chunks])
        await asyncio.to_thread(_pass_over, chunks)  # where it was here already, nobody read them
        if told := self._digests.get(snapshot_id):
            digest, _, _ = await self._store.digest(snapshot_id)
            if digest != told:
                logger.error("a snapshot is not what it was", extra={"snapshot": snapshot_id})
                self.corrupt.append(snapshot_id)


class _Ahead:
    """Pieces, with a look at the next one. Used by one thread at a time."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._next: Piece | None = None

    def look(self) -> Piece | None:
        if self._next is None:
            self._next = next(self._pieces, None)
        return self._next

    def take(self) -> Piece:
        piece, self._next = self.look(), None
        assert piece is not None
        return piece

    def of(self, whose: tuple[str, str]) -> Iterator[bytes]:
        """The content of those that follow and belong together."""
        while (piece := self.look()) is not None and piece.of == whose:
            yield self.take().data

    def below(self, kind: str, folder: str) -> Iterator[tuple[str, bytes]]:
        """The same of all files in a folder: (the file, a piece of it)."""
        while (piece := self.look()) is not None and piece.of[0] == kind:
            whose, _, name = piece.of[1].partition("/")
            if whose != folder:
                return
            yield name, self.take().data


def _pass_over(chunks: Iterator[bytes]) -> None:
    for _ in chunks:
        pass


async def _asynchronous(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
