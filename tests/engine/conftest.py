"""The stage, for tests of the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.engine.stage import Stage, stage


@pytest.fixture
async def here(redis_url: str, installation: str, short_dir: Path) -> AsyncIterator[Stage]:
    async with stage(redis_url, installation, short_dir) as made:
        yield made
