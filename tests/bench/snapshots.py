"""What snapshot, fork, archive and restore cost at the store: both stores, beside `cp -a`, `tar | zstd -1` and restic
of the same files on the same filesystem, in turn.

1,000 files; FULL=1 adds 20,000 files and three large ones. Needs root. Knows no execution.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable
from pathlib import Path

from orchestrator.archives.disk import DiskArchive
from orchestrator.workspace import SnapshotStore
from tests.bench.copiers import COPIERS, Copier
from tests.bench.figures import Figure, Samples
from tests.bench.site import Site
from tests.bench.trees import MIB, Tree, trees
from tests.volume_stores import new_pool, store_at

FIRST, AGAIN, BACK = "first", "again", "back"  # what the copiers do
VERBS = {
    "snapshot": FIRST,
    "snapshot of 1 % changed": AGAIN,
    "fork": BACK,
    "archive": FIRST,
    "archive of 1 % changed": AGAIN,
    "restore": BACK,
}
WHOLE, CHANGED = "snapshots/snp_first/a.tar.zst", "snapshots/snp_changed/a.tar.zst"


async def snapshot(_: Site) -> list[Figure]:
    """The verbs, on each store and tree, each beside the three copiers."""
    figures: list[Figure] = []
    for tree in trees():
        with new_pool(32_768 * MIB) as pool:
            for kind, below in (("btrfs", pool.point), ("directory", pool.folder)):
                folder = Path(tempfile.mkdtemp(dir=below))
                figures += await _measured(store_at(kind, folder), folder, tree, f"{kind}, {tree.words}")
    return figures


async def _measured(store: SnapshotStore, folder: Path, tree: Tree, words: str) -> list[Figure]:
    volume = (await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)).path / "vol"
    await asyncio.to_thread(tree.lay, volume / "workspace")
    copiers = {name: Copier(name, volume, folder / str(at)) for at, name in enumerate(COPIERS)}
    archive = DiskArchive(folder, folder / "archive")
    ours: dict[str, list[float]] = defaultdict(list)
    theirs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(tree.rounds):
        await asyncio.to_thread(os.sync)
        ours["snapshot"].append(await _taken_ms(store.snapshot("sbx_a", "snp_first")))
        ours["archive"].append(await _taken_ms(asyncio.to_thread(archive.put, WHOLE, store.pack("snp_first"))))
        for name, copier in copiers.items():
            theirs[FIRST, name].append(await asyncio.to_thread(copier.keep_ms))
        await asyncio.to_thread(tree.change, volume / "workspace")
        ours["snapshot of 1 % changed"].append(await _taken_ms(store.snapshot("sbx_a", "snp_changed")))
        layer = store.pack("snp_changed", below="snp_first")
        ours["archive of 1 % changed"].append(await _taken_ms(asyncio.to_thread(archive.put, CHANGED, layer)))
        await store.drop("snp_first")
        for name, copier in copiers.items():
            await asyncio.to_thread(tree.change, volume / "workspace")
            theirs[AGAIN, name].append(await asyncio.to_thread(copier.again_ms))
        ours["fork"].append(await _taken_ms(store.begin("sbx_b", "snp_changed", disk_bytes=0)))
        await store.remove("sbx_b")
        await store.drop("snp_changed")
        layers = (archive.get(name) for name in (WHOLE, CHANGED))
        ours["restore"].append(await _taken_ms(store.load("snp_back", layers)))
        await store.drop("snp_back")
        for name, copier in copiers.items():
            theirs[BACK, name].append(await asyncio.to_thread(copier.back_ms))
    for copier in copiers.values():
        copier.forget()
    await store.remove("sbx_a")
    return [
        Figure(f"{verb} ({words})", Samples(tuple(ours[verb])), Samples(tuple(theirs[as_if, name])), name)
        for verb, as_if in VERBS.items()
        for name in COPIERS
    ]


async def _taken_ms(work: Awaitable[object]) -> float:
    began = time.monotonic()
    await work
    return (time.monotonic() - began) * 1000
