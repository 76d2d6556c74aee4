"""What a snapshot and a fork cost at the store: both stores, beside `cp -a`, `tar | zstd -1` and restic of the same
files on the same filesystem, in turn.

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

from orchestrator.workspace import SnapshotStore
from tests.bench.copiers import COPIERS, Copier
from tests.bench.figures import Figure, Samples
from tests.bench.site import Site
from tests.bench.trees import MIB, Tree, trees
from tests.volume_stores import new_pool, store_at

VERBS = ("snapshot", "snapshot of 1 % changed", "fork")


async def snapshot(_: Site) -> list[Figure]:
    """The three verbs, on each store and tree, each beside the three copiers."""
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
    ours: dict[str, list[float]] = defaultdict(list)
    theirs: dict[tuple[str, str], list[float]] = defaultdict(list)
    first, changed, fork = VERBS
    for _ in range(tree.rounds):
        await asyncio.to_thread(os.sync)
        ours[first].append(await _taken_ms(store.snapshot("sbx_a", "snp_first")))
        for name, copier in copiers.items():
            theirs[first, name].append(await asyncio.to_thread(copier.keep_ms))
        await asyncio.to_thread(tree.change, volume / "workspace")
        ours[changed].append(await _taken_ms(store.snapshot("sbx_a", "snp_changed")))
        for name, copier in copiers.items():
            await asyncio.to_thread(tree.change, volume / "workspace")
            theirs[changed, name].append(await asyncio.to_thread(copier.again_ms))
        ours[fork].append(await _taken_ms(store.begin("sbx_b", "snp_changed", disk_bytes=0)))
        for name, copier in copiers.items():
            theirs[fork, name].append(await asyncio.to_thread(copier.back_ms))
        await store.drop("snp_first")
        await store.drop("snp_changed")
        await store.remove("sbx_b")
    return [
        Figure(f"{verb} ({words})", Samples(tuple(ours[verb])), Samples(tuple(theirs[verb, name])), name)
        for verb in VERBS
        for name in COPIERS
    ]


async def _taken_ms(work: Awaitable[object]) -> float:
    began = time.monotonic()
    await work
    return (time.monotonic() - began) * 1000
