"""The stores under contract: each port's suite runs on every implementation's fixture; here, Redis on a real server."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server
from orchestrator.workspace import SnapshotStore
from orchestrator.workspaces.btrfs import Subvolumes
from orchestrator.workspaces.pool import Pool
from tests.contracts.redis_store import Store
from tests.volume_stores import new_pool, store_at


@pytest.fixture
async def store(redis_url: str, installation: str) -> AsyncIterator[Store]:
    server, keys = Server(redis_url), Keys(installation)
    history = RedisHistory(server, keys)
    try:
        yield Store(server, keys, RedisExecutions(server, keys), history)
    finally:
        await history.aclose()
        await server.aclose()


@pytest.fixture(scope="session")
def session_pool() -> Iterator[Pool]:
    with new_pool() as pool:
        yield pool


@pytest.fixture(params=["directory", pytest.param("btrfs", marks=pytest.mark.root)])
def snapshot_store(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[SnapshotStore]:
    """Each kind, in a folder of this test's own."""
    if request.param == "directory":
        yield store_at("directory", short_dir)
        return
    folder = request.getfixturevalue("session_pool").point / short_dir.name
    folder.mkdir()
    yield store_at("btrfs", folder)
    for place in ("slots", "snapshots"):
        for one in (folder / place).glob("*"):
            Subvolumes().remove(one)
    shutil.rmtree(folder)
