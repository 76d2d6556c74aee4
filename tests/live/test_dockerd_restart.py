"""dockerd killed and started again under running sandboxes: an engine of the test's own, with live-restore and without.

One engine for the module: its image takes 20 s to load.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import EngineUnavailable
from orchestrator.link import OwnerLink
from orchestrator.sandbox import Absent, Ended, Running, Unknown
from sandbox_init.spool import SpoolReader
from tests.private_dockerd import PrivateDockerd
from tests.sandboxes import DockerBench, until

# One group: with xdist these tests share the one engine, and so one worker.
pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(300), pytest.mark.xdist_group("dockerd")]

COUNT = "n=0; while :; do echo $((n += 1)); done"


@pytest.fixture(scope="module")
def engine(sandbox_image: str) -> Iterator[PrivateDockerd]:
    with PrivateDockerd() as made:
        made.start(live_restore=True)
        made.load(sandbox_image)
        made.kill()
        yield made


@pytest.fixture
async def bench(
    engine: PrivateDockerd, short_dir: Path, sandbox_image: str, installation: str
) -> AsyncIterator[DockerBench]:
    made = DockerBench(short_dir, sandbox_image, installation, base_url=engine.url)
    yield made
    await made.close()
    await asyncio.to_thread(engine.kill)


async def counting(bench: DockerBench) -> str:
    """A sandbox whose harness counts aloud, as fast as it is read."""
    sandbox_id = await bench.opened()
    async with bench.owner(sandbox_id) as owner:
        fields = {
            "argv": ["/bin/bash", "-c", COUNT],
            "cwd": "/workspace",
            "stdin": "none",
            "output": "bytes",
            "env": {},
        }
        await owner.start(fields, b"")
        await until(lambda: _waiting(owner), "it counts")
    return sandbox_id


async def read(bench: DockerBench, sandbox_id: str, *, after: int, enough: int) -> tuple[int, bytes]:
    """The last src and the output of frames after `after`, until there are `enough` bytes; acknowledged."""
    said = bytearray()
    src = after
    async with bench.owner(sandbox_id, after=after) as owner:
        while len(said) < enough:
            await until(lambda: _waiting(owner), "output goes on")
            for frame in owner.take(max_frames=1000, max_bytes=1 << 20):
                assert frame.src == src + 1, "a frame is missing"
                src = frame.src
                if frame.verb == "output":
                    said += frame.payload
            await owner.ack(src)
    return src, bytes(said)


async def test_with_live_restore_nothing_is_lost_and_unknown_is_never_absent(
    engine: PrivateDockerd, bench: DockerBench
) -> None:
    await asyncio.to_thread(engine.start, live_restore=True)
    sandbox_id = await counting(bench)
    pid = bench.init_pid(sandbox_id)
    src, said = await read(bench, sandbox_id, after=0, enough=100_000)
    await asyncio.to_thread(engine.kill)
    for _ in range(20):
        assert isinstance(await bench.driver.observe(sandbox_id), Unknown)
        assert isinstance(await bench.driver.observe("sbx_never"), Unknown)
    for asked in (bench.driver.list(), bench.driver.remove(sandbox_id), bench.driver.capabilities()):
        with pytest.raises(EngineUnavailable):
            await asked
    # Its init is reached without the engine.
    src, more = await read(bench, sandbox_id, after=src, enough=1_000_000)
    said += more
    await asyncio.to_thread(engine.start, live_restore=True)
    status = await bench.driver.observe(sandbox_id)
    assert isinstance(status, Running) and bench.init_pid(sandbox_id) == pid
    src, more = await read(bench, sandbox_id, after=src, enough=100_000)
    said += more
    numbers = said[: said.rindex(b"\n")].split(b"\n")
    assert numbers == [b"%d" % n for n in range(1, len(numbers) + 1)]
    await bench.driver.pause(sandbox_id)
    await bench.driver.unpause(sandbox_id)
    await bench.driver.remove(sandbox_id)
    assert await bench.driver.observe(sandbox_id) == Absent()


async def test_without_live_restore_the_end_is_seen_and_is_not_success(
    engine: PrivateDockerd, bench: DockerBench
) -> None:
    await asyncio.to_thread(engine.start, live_restore=False)
    sandbox_id = await counting(bench)
    src, _ = await read(bench, sandbox_id, after=0, enough=100_000)
    await asyncio.to_thread(engine.kill)
    assert isinstance(await bench.driver.observe(sandbox_id), Unknown)
    src, _ = await read(bench, sandbox_id, after=src, enough=100_000)  # it lives on until dockerd returns
    trace = engine.cgroup
    await asyncio.to_thread(engine.start, live_restore=False)
    await until(lambda: _ended(bench, sandbox_id), "the engine has ended it")
    reader = SpoolReader(str(bench.store.slot(sandbox_id).spool))
    verbs = [frame.verb for frame in reader.frames(src)]
    assert verbs and "exit" not in verbs, "so the host can tell init_lost from success, whatever exit code docker says"
    # All that a retry does: the box goes, its files stay.
    await bench.driver.remove(sandbox_id)
    assert await bench.driver.observe(sandbox_id) == Absent()
    assert await bench.store.holds(sandbox_id)
    left = [path for path in Path("/sys/fs/cgroup").glob(f"*/{trace}/*") if path.is_dir()]
    assert left == []


async def test_a_paused_sandbox_survives_and_can_be_removed_after(engine: PrivateDockerd, bench: DockerBench) -> None:
    await asyncio.to_thread(engine.start, live_restore=True)
    sandbox_id = await counting(bench)
    await bench.driver.pause(sandbox_id)
    await asyncio.to_thread(engine.kill)
    await asyncio.to_thread(engine.start, live_restore=True)
    status = await bench.driver.observe(sandbox_id)
    assert isinstance(status, Running) and status.paused
    await bench.driver.remove(sandbox_id)
    assert await bench.driver.observe(sandbox_id) == Absent()


async def test_watch_ends_when_the_engine_goes_away(engine: PrivateDockerd, bench: DockerBench) -> None:
    await asyncio.to_thread(engine.start, live_restore=True)
    sandbox_id = await bench.sandbox()
    heard: list[str] = []

    async def listen() -> None:
        async for hint in bench.driver.watch():
            heard.append(hint)

    listener = asyncio.create_task(listen())

    async def hint() -> bool:
        await bench.driver.pause(sandbox_id)
        await bench.driver.unpause(sandbox_id)
        return sandbox_id in heard

    await until(hint, "a hint")
    await asyncio.to_thread(engine.kill)
    async with asyncio.timeout(30):
        await listener
    await asyncio.to_thread(engine.start, live_restore=True)


async def _waiting(owner: OwnerLink) -> bool:
    return owner.waiting


async def _ended(bench: DockerBench, sandbox_id: str) -> bool:
    return isinstance(await bench.driver.observe(sandbox_id), Ended)
