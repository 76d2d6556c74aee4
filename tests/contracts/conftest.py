"""The stores under contract: each port's suite runs on every implementation's fixture; here, Redis on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server
from tests.contracts.redis_store import Store


@pytest.fixture
async def store(redis_url: str, installation: str) -> AsyncIterator[Store]:
    server, keys = Server(redis_url), Keys(installation)
    history = RedisHistory(server, keys)
    try:
        yield Store(server, keys, RedisExecutions(server, keys), history)
    finally:
        await history.aclose()
        await server.aclose()
