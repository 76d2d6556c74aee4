"""The port SnapshotStore, over slots and kept volumes of any kind: what blocks there runs in a thread here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path

from orchestrator.durable import sync_filesystem
from orchestrator.errors import Infeasible, NotFound
from orchestrator.workspace import DiskUse, Files, Layer, Seed, Slot, StoreFacts, UnpackLimits
from orchestrator.workspaces import laying, measuring, packing, paths
from orchestrator.workspaces.incoming import no_archive
from orchestrator.workspaces.keep import Keep
from orchestrator.workspaces.slots import Slots, whole
from orchestrator.workspaces.volumes import Volumes


class VolumeStore:
    """`slots` and `snapshots` are folders on one filesystem, on which `volumes` lie."""

    def __init__(self, slots: Path, snapshots: Path, volumes: Volumes) -> None:
        self._root = slots
        self._volumes = volumes
        self._slots = Slots(slots, volumes)
        self._keep = Keep(snapshots, volumes)

    # -- slots --------------------------------------------------------------------------------------------------------

    async def prepare(self, sandbox_id: str, *, inherit: str | None, seeds: Sequence[Seed], disk_bytes: int) -> Slot:
        slot = self.slot(sandbox_id)
        await asyncio.to_thread(self._slots.prepare, slot, inherit, seeds, disk_bytes)
        return slot

    def slot(self, sandbox_id: str) -> Slot:
        return self._slots.slot(sandbox_id)

    async def holds(self, sandbox_id: str) -> bool:
        return self._slots.volume(sandbox_id) is not None

    async def strip(self, sandbox_id: str) -> None:
        await asyncio.to_thread(self._slots.strip, sandbox_id)

    async def remove(self, sandbox_id: str) -> None:
        await asyncio.to_thread(self._slots.remove, sandbox_id)

    async def list(self) -> Sequence[tuple[str, datetime]]:
        return await asyncio.to_thread(self._list)

    def files(self, sandbox_id: str) -> Files:
        return paths.VolumeFiles(self._volume(sandbox_id))

    # -- snapshots ----------------------------------------------------------------------------------------------------

    async def facts(self) -> StoreFacts:
        return await asyncio.to_thread(self._facts)

    async def snapshot(self, sandbox_id: str, snapshot_id: str, *, still: Callable[[], bool] | None = None) -> None:
        volume = self._volume(sandbox_id)
        dropped = threading.Event()  # a thread cannot be cancelled: it asks

        def wanted() -> bool:
            return not dropped.is_set() and (still is None or still())

        try:
            await asyncio.to_thread(self._keep.take, snapshot_id, lambda new: self._volumes.keep(volume, new), wanted)
        except asyncio.CancelledError:
            dropped.set()
            raise

    async def receive(self, snapshot_id: str, fill: Callable[[Path], None]) -> None:
        await asyncio.to_thread(self._keep.take, snapshot_id, lambda new: self._receive(new, fill))

    async def load(
        self, snapshot_id: str, layers: Iterable[Iterable[bytes]], *, limits: UnpackLimits | None = None
    ) -> None:
        def fill(building: Path) -> None:
            laying.lay(building, layers, limits)
            if not whole(building):
                raise no_archive("tar.zst", "it has no workspace/ and state/")

        await self.receive(snapshot_id, fill)

    def pack(self, snapshot_id: str, *, below: str = "") -> Layer:
        top = self._keep.volume(snapshot_id)
        if not below:
            return packing.Packed(top)
        return packing.Packed(top, self._keep.volume(below), self._keep.made_ns(below))

    async def begin(self, sandbox_id: str, snapshot_id: str, *, disk_bytes: int) -> Slot:
        slot = self.slot(sandbox_id)
        kept = self._keep.volume(snapshot_id)
        await asyncio.to_thread(self._slots.begin, slot, kept, disk_bytes)
        return slot

    async def snapshots(self) -> Sequence[tuple[str, datetime]]:
        return await asyncio.to_thread(self._keep.list)

    def snapshot_files(self, snapshot_id: str) -> Files:
        return paths.VolumeFiles(self._keep.volume(snapshot_id), read_only=True)

    async def digest(self, snapshot_id: str) -> tuple[str, int, int]:
        return await asyncio.to_thread(measuring.digest, self._keep.volume(snapshot_id))

    async def drop(self, snapshot_id: str) -> None:
        await asyncio.to_thread(self._keep.drop, snapshot_id)

    async def disk(self, sandbox_id: str) -> DiskUse:
        return await asyncio.to_thread(self._volumes.use, self._volume(sandbox_id))

    async def snapshot_disk(self, snapshot_id: str) -> DiskUse:
        return await asyncio.to_thread(self._volumes.use, self._keep.volume(snapshot_id))

    async def limit(self, sandbox_id: str, disk_bytes: int) -> None:
        await asyncio.to_thread(self._limit, self._volume(sandbox_id), disk_bytes)

    # -- in a thread --------------------------------------------------------------------------------------------------

    def _list(self) -> Sequence[tuple[str, datetime]]:
        if self._root.is_dir():  # whoever lists does so again and again, to sweep
            self._volumes.tend(self._root)
        return self._slots.list()

    def _facts(self) -> StoreFacts:
        there = next(folder for folder in (self._root, *self._root.parents) if folder.is_dir())
        return self._volumes.facts(there)

    def _receive(self, new: Path, fill: Callable[[Path], None]) -> None:
        building = new.with_name("incoming")
        self._volumes.make(building, 0)
        fill(building)
        sync_filesystem(building)
        self._volumes.settle(building, new)

    def _limit(self, volume: Path, disk_bytes: int) -> None:
        if disk_bytes:
            used_bytes = self._volumes.use(volume).used_bytes
            if used_bytes > disk_bytes and self._volumes.facts(volume).limits_disk:
                raise Infeasible(
                    f"the workspace holds {used_bytes} bytes: more than the limit of {disk_bytes}",
                    field="disk_bytes",
                    limit=f">= {used_bytes}",
                )
        self._volumes.limit(volume, disk_bytes)

    def _volume(self, sandbox_id: str) -> Path:
        volume = self._slots.volume(sandbox_id)
        if volume is None:
            raise NotFound("the workspace is not here", kind="workspace", id=sandbox_id)
        return volume
