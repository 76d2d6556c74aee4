"""Leases on a real store: kept while renewed, gone when another has them, and lapsed when nobody says."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from ulid import ULID

from orchestrator.clock import SystemClock
from orchestrator.engine import lease_keeper
from orchestrator.errors import Fenced, StoreUnavailable
from orchestrator.execution import Spec
from orchestrator.executions import Claim, Nothing
from orchestrator.history import Lease
from orchestrator.stores import embedded
from orchestrator.stores.redis import Keys, RedisExecutions, Server, prepare

CLOCK = SystemClock()


class Gate(RedisExecutions):
    """The real store behind a door the test may shut."""

    shut = False

    async def renew(self, lease: Lease) -> None:
        if self.shut:
            raise StoreUnavailable("shut")
        await super().renew(lease)


async def claimed(executions: RedisExecutions, lease_s: float) -> lease_keeper.Hold:
    await executions.submit(Spec(harness="command", command=("true",)), execution_id=f"exe_{str(ULID()).lower()}")
    asked_at = CLOCK.monotonic()
    claim = await executions.claim("me", "here", lease_s=lease_s)
    assert isinstance(claim, Claim)
    return lease_keeper.Hold(claim.lease, CLOCK, asked_at)


async def test_kept_past_its_first_end(redis_url: str, installation: str) -> None:
    server = Server(redis_url)
    keys = Keys(installation)
    await prepare(server, keys)
    executions = RedisExecutions(server, keys)
    hold = await claimed(executions, 1.0)
    keeping = asyncio.create_task(lease_keeper.keep(executions, hold, lambda: False))
    until = asyncio.get_running_loop().time() + 2.5
    while asyncio.get_running_loop().time() < until:
        assert isinstance(await executions.claim("you", "here", lease_s=1.0), Nothing)
        await asyncio.sleep(0.1)
    keeping.cancel()
    while isinstance(claim := await executions.claim("you", "here", lease_s=1.0), Nothing):
        await asyncio.sleep(0.05)
    assert claim.lease.epoch == hold.lease.epoch + 1
    hold = lease_keeper.Hold(hold.lease, CLOCK, CLOCK.monotonic())  # it thinks it has time, and is told better
    with pytest.raises(Fenced):
        await lease_keeper.keep(executions, hold, lambda: False)
    with pytest.raises(Fenced):
        await lease_keeper.regain(executions, hold)
    await server.aclose()


async def test_lapsed_and_regained(redis_url: str, installation: str) -> None:
    server = Server(redis_url)
    keys = Keys(installation)
    await prepare(server, keys)
    executions = Gate(server, keys)
    hold = await claimed(executions, 1.0)
    executions.shut = True
    with pytest.raises(lease_keeper.Lapsed):
        await lease_keeper.keep(executions, hold, lambda: False)
    assert not hold.held()
    regaining = asyncio.create_task(lease_keeper.regain(executions, hold))
    executions.shut = False
    await regaining  # nobody claimed it meanwhile: it is ours still
    assert hold.held()
    await server.aclose()


async def test_giving_up_is_no_loss(redis_url: str, installation: str) -> None:
    server = Server(redis_url)
    keys = Keys(installation)
    await prepare(server, keys)
    executions = RedisExecutions(server, keys)
    lease = replace((await claimed(executions, 0.4)).lease, epoch=99)
    hold = lease_keeper.Hold(lease, CLOCK, CLOCK.monotonic())
    await lease_keeper.keep(executions, hold, lambda: True)
    await server.aclose()


async def test_a_stopped_store_lapses(short_dir: Path, installation: str) -> None:
    """No answer at all, not even an error."""
    running = await asyncio.to_thread(embedded.ensure, short_dir)
    server = Server(running.url)
    keys = Keys(installation)
    await prepare(server, keys)
    executions = RedisExecutions(server, keys)
    hold = await claimed(executions, 1.0)
    os.kill(running.pid, signal.SIGSTOP)
    try:
        with pytest.raises(lease_keeper.Lapsed):
            await lease_keeper.keep(executions, hold, lambda: False)
    finally:
        os.kill(running.pid, signal.SIGCONT)
    await lease_keeper.regain(executions, hold)
    await server.aclose()
    await asyncio.to_thread(embedded.shutdown, short_dir)
