"""The stage, for tests of the engine: on plain directories, or on each kind of store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engine.stage import Stage, stage
from tests.volume_stores import MIB, new_pool, store_at


@pytest.fixture
async def here(redis_url: str, installation: str, short_dir: Path) -> AsyncIterator[Stage]:
    async with stage(redis_url, installation, short_dir) as made:
        yield made


@pytest.fixture(params=["directory", "btrfs"])
async def everywhere(
    request: pytest.FixtureRequest, redis_url: str, installation: str, short_dir: Path
) -> AsyncIterator[Stage]:
    """The same, once on each store: a pool of this test's own for the second."""
    if request.param == "directory":
        async with stage(redis_url, installation, short_dir) as made:
            yield made
        return
    with new_pool(4096 * MIB) as pool:
        async with stage(redis_url, installation, short_dir, workspaces=store_at("btrfs", pool.point)) as made:
            yield made
