"""A desk for a harness; a journal of intents that programs of a sandbox can reach."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server
from tests.agent_harness.desk import Desk, Turn
from tests.agent_harness.journal_front import Front, fronted
from tests.contracts.redis_store import Store


@pytest.fixture
async def front(store: Store, short_dir: Path) -> AsyncIterator[Front]:
    async with fronted(store, short_dir) as one:
        yield one


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
def desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """`desk(turn, turn, …)`: a desk whose model says these."""
    with ExitStack() as made:

        def build(*turns: Turn, **more: Any) -> Desk:
            return made.enter_context(Desk(tmp_path, turns, **more))

        yield build
