"""Thirty commands of one harness, each to be run once, while one worker after the other is killed: the real journal,
gateways in processes of their own, the real outlet and `carrel-intent` in a real container."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.clock import SystemClock
from orchestrator.gateway.unix import UnixGateways
from orchestrator.gateways import OUTLET_PORT
from orchestrator.history import Lease
from orchestrator.intents import IntentState
from orchestrator.models import ModelPolicy
from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server
from tests.contracts.redis_store import Store
from tests.sandboxes import DockerBench, until

pytestmark = [pytest.mark.root, pytest.mark.docker]

COMMANDS = 30
SCRIPT = f"""
for i in $(seq 1 {COMMANDS}); do
  carrel-intent once --key step-$i -- sh -c "echo $i >> ran" || exit
done
"""


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
async def bench(short_dir: Path, sandbox_image: str, installation: str) -> AsyncIterator[DockerBench]:
    made = DockerBench(short_dir, sandbox_image, installation)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def worker(redis_url: str, installation: str, lease: Lease, at: Path) -> AsyncIterator[None]:
    """It listens; it is killed at the end."""
    plan = {"redis_url": redis_url, "installation": installation, "epoch": lease.epoch, "owner": lease.owner}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.live.gateway_process", json.dumps({**plan, "at": str(at)})),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout and await process.stdout.readline() == b"listens\n"
        yield
    finally:
        process.kill()
        await process.wait()


async def test_each_command_ran_once_whoever_died(
    bench: DockerBench, store: Store, redis_url: str, installation: str
) -> None:
    sandbox_id = await bench.opened()
    slot = bench.store.slot(sandbox_id)
    ran = slot.path / "vol" / "workspace" / "ran"
    lease = await store.running()
    gateways = UnixGateways(ModelPolicy(), store.calls, store.intents, SystemClock(), b"s" * 32)
    env = dict(gateways.environment(await store.executions.get(lease.execution_id)))

    def lines() -> int:
        return len(ran.read_text().split()) if ran.exists() else 0

    async with bench.owner(sandbox_id, epoch=2) as owner:
        fields = {"argv": ["bash", "-c", SCRIPT], "env": env, "cwd": "/workspace", "stdin": "none", "output": "bytes"}
        await owner.start({**fields, "outlet_port": OUTLET_PORT}, b"")
        for goal in (0, 0, 1, 3, 4, 8, 12, 13, 19, 25, COMMANDS):
            async with worker(redis_url, installation, lease, slot.gateway):

                async def enough(goal: int = goal) -> bool:
                    return lines() >= goal

                await until(enough, f"{goal} commands have run")
            if goal < COMMANDS:
                lease = await store.adopted()
        async with worker(redis_url, installation, lease, slot.gateway):
            printed = b""
            while True:
                frames = owner.take(max_frames=100, max_bytes=1 << 20)
                printed += b"".join(frame.payload for frame in frames if frame.verb == "output")
                if frames and frames[-1].verb == "exit":
                    break
                assert owner.lost is None
                await asyncio.sleep(0.01)
    assert (frames[-1].fields, printed) == ({**frames[-1].fields, "code": 0}, b"")
    assert ran.read_text().split() == [str(n) for n in range(1, COMMANDS + 1)]
    entries = await store.intents.list(lease.execution_id)
    assert [(one.key, one.state) for one in entries] == [
        (f"step-{n}", IntentState.DONE) for n in range(1, COMMANDS + 1)
    ]
