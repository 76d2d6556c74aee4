"""What a snapshot and a fork cost at the store, by kind and size, beside `cp -a` and `tar | zstd -1` of the same files.

Sizes: 1,000 files of 11 KB; FULL=1 adds 20,000 of 15 KB and three of 500 MB. Needs root. Knows no execution.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.workspace import SnapshotStore
from tests.bench.figures import Figure, Samples
from tests.bench.site import Site
from tests.volume_stores import MIB, new_pool, store_at

ROUNDS = 5
SIZES = {"1,000 files, 11 MB": (1000, 11_000), "20,000 files, 300 MB": (20_000, 15_000), "3 × 500 MB": (3, 500 * MIB)}


async def snapshot(_: Site) -> list[Figure]:
    """Both verbs on both stores, and the yardsticks on the same filesystem as the directories."""
    wanted = SIZES if os.environ.get("FULL") else dict(list(SIZES.items())[:1])
    figures: list[Figure] = []
    with new_pool(16_384 * MIB) as pool:
        for words, (files, size_bytes) in wanted.items():
            for kind, below in (("btrfs", pool.point), ("directory", pool.folder)):
                folder = Path(tempfile.mkdtemp(dir=below))
                figures += await _measured(store_at(kind, folder), folder, f"{kind}, {words}", files, size_bytes)
    return figures


async def _measured(store: SnapshotStore, folder: Path, words: str, files: int, size_bytes: int) -> list[Figure]:
    slot = await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    for number in range(files):
        at = slot.path / "vol" / "workspace" / f"d{number % 100}"
        at.mkdir(exist_ok=True)
        with (at / f"f{number}").open("wb") as file:
            for begin in range(0, size_bytes, MIB):
                file.write(os.urandom(min(MIB, size_bytes - begin)))
    os.sync()
    taken: list[float] = []
    begun: list[float] = []
    for number in range(ROUNDS):
        began = time.monotonic()
        await store.snapshot("sbx_a", f"snp_{number}")
        between = time.monotonic()
        await store.begin(f"sbx_{number}", f"snp_{number}", disk_bytes=0)
        taken.append((between - began) * 1000)
        begun.append((time.monotonic() - between) * 1000)
    vol, copy = slot.path / "vol", folder / "copy"
    cp = await asyncio.to_thread(_timed, f"cp -a {vol} {copy} && sync -f {folder}", lambda: shutil.rmtree(copy))
    tar = await asyncio.to_thread(_timed, f"tar -C {vol} -c . | zstd -q -1 > {copy} && sync -f {folder}", copy.unlink)
    for number in range(ROUNDS):
        await store.drop(f"snp_{number}")
        await store.remove(f"sbx_{number}")
    await store.remove("sbx_a")
    return [
        Figure(f"snapshot ({words})", Samples(tuple(taken)), cp, "cp -a"),
        Figure(f"fork ({words})", Samples(tuple(begun)), tar, "tar | zstd -1"),
    ]


def _timed(command: str, after: Callable[[], object]) -> Samples:
    taken: list[float] = []
    for _ in range(ROUNDS):
        began = time.monotonic()
        subprocess.run(["sh", "-c", command], check=True)
        taken.append((time.monotonic() - began) * 1000)
        after()
    return Samples(tuple(taken))
