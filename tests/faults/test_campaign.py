"""The centre: many executions, three workers, an api, a store, and a nemesis; not a line lost, doubled or out of order.

SEED, KILLS, EXECUTIONS and LINES may be set in the environment (`make test-faults`).
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from tests.faults.campaign import Campaign, run

pytestmark = [pytest.mark.root, pytest.mark.timeout(900), pytest.mark.xdist_group("faults")]


def number(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


async def test_no_line_is_lost_doubled_or_out_of_order() -> None:
    asked = Campaign(
        seed=number("SEED", random.SystemRandom().randrange(1 << 31)),
        kills=number("KILLS", 100),
        executions=number("EXECUTIONS", 60),
        lines=number("LINES", 3000),
    )
    result = await run(asked)
    line = result.verdict.line(result.broken.total(), asked.seed)
    sys.stdout.write(f"{dict(result.broken)} adoptions={result.verdict.adoptions}\n{line}\n")
    assert result.verdict.clean, "\n".join([line, *result.verdict.odd, result.logs])
    assert result.broken.total() >= asked.kills
    assert result.verdict.adoptions > 0  # otherwise nothing was tried


@pytest.mark.full
async def test_without_the_fence_the_same_campaign_shows_duplicates() -> None:
    """The ablation: a judge that cannot condemn proves nothing."""
    asked = Campaign(
        seed=number("SEED", 1),
        kills=20,
        executions=24,
        lines=3000,
        last_s=15.0,
        mischief={"stop_worker": 3, "kill_worker": 1},
        worker_argv=("-m", "tests.faults.unfenced_worker"),
    )
    result = await run(asked)
    assert result.verdict.duplicated > 0, result.verdict.line(result.broken.total(), asked.seed)


@pytest.mark.full
@pytest.mark.docker
async def test_the_same_in_containers(sandbox_image: str) -> None:
    """Smaller: a container costs more than a box. The engine itself is left in peace here (test_dockerd_killed)."""
    asked = Campaign(
        seed=number("SEED", random.SystemRandom().randrange(1 << 31)),
        kills=40,
        executions=16,
        lines=3000,
        environment={"CARREL_DRIVER": "docker", "CARREL_IMAGE": sandbox_image},
    )
    result = await run(asked)
    line = result.verdict.line(result.broken.total(), asked.seed)
    assert result.verdict.clean, "\n".join([line, *result.verdict.odd, result.logs])
