"""The stores under contract: each port's suite runs on every implementation's fixture; here, Redis on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server
from orchestrator.workspace import SnapshotStore
from tests.contracts.redis_store import Store
from tests.volume_stores import store_at


@pytest.fixture
async def store(redis_url: str, installation: str) -> AsyncIterator[Store]:
    server, keys = Server(redis_url), Keys(installation)
    history = RedisHistory(server, keys)
    try:
        yield Store(server, keys, RedisExecutions(server, keys), history)
    finally:
        await history.aclose()
        await server.aclose()


@pytest.fixture(params=["directory"])
def snapshot_store(request: pytest.FixtureRequest, short_dir: Path) -> SnapshotStore:
    return store_at(request.param, short_dir)
