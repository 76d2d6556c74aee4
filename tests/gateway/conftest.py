"""A gateway of this test's own, in front of a scripted model server, with a real store behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server
from tests.contracts.redis_store import Store
from tests.gateway.rig import Rig


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that workers run on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def store(redis_url: str, installation: str) -> AsyncIterator[Store]:
    server, keys = Server(redis_url), Keys(installation)
    history = RedisHistory(server, keys)
    try:
        yield Store(server, keys, RedisExecutions(server, keys), history)
    finally:
        await history.aclose()
        await server.aclose()


@pytest.fixture
async def rig(store: Store, short_dir: Path) -> AsyncIterator[Rig]:
    made = Rig(store, short_dir)
    try:
        yield made
    finally:
        await made.aclose()
