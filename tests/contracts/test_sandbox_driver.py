"""The port of sandboxes, sentence by sentence, on every driver."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import ImageMissing, Infeasible, LinkLost, SandboxConflict
from orchestrator.sandbox import Absent, Ended, Fit, Running
from tests.sandboxes import SMALL, Bench, DockerBench, ScriptedBench, until

pytestmark = pytest.mark.root

#: A worker that makes one sandbox: the driver's kind and folders, image, slot, id.
MAKER = """
import asyncio, sys
from pathlib import Path
from tests.sandboxes import SMALL, DockerBench, ScriptedBench
from orchestrator.sandbox import SandboxSpec
kind, folder, installation, image, slot, sandbox_id = sys.argv[1:]
bench = ScriptedBench(Path(folder)) if kind == "scripted" else DockerBench(Path(folder), image, installation)
asyncio.run(bench.driver.ensure(SandboxSpec(image=image, resources=SMALL, slot=Path(slot)), sandbox_id))
"""


@pytest.fixture(params=["scripted", pytest.param("docker", marks=pytest.mark.docker)])
async def bench(request: pytest.FixtureRequest, short_dir: Path, installation: str) -> AsyncIterator[Bench]:
    made: Bench
    if request.param == "scripted":
        made = ScriptedBench(short_dir)
    else:
        made = DockerBench(short_dir, request.getfixturevalue("sandbox_image"), installation)
    try:
        yield made
    finally:
        await made.close()


# -- ensure -----------------------------------------------------------------------------------------------------------


async def test_after_ensure_it_runs_and_init_answers_by_its_name(bench: Bench) -> None:
    sandbox_id = await bench.sandbox()
    status = await bench.driver.observe(sandbox_id)
    assert isinstance(status, Running) and not status.paused and status.started_at is not None
    async with bench.owner(sandbox_id) as owner:
        assert owner.hello.sandbox_id == sandbox_id


async def test_ensure_again_changes_nothing(bench: Bench) -> None:
    sandbox_id, spec = await bench.slot()
    await bench.driver.ensure(spec, sandbox_id)
    first = bench.init_pid(sandbox_id)
    await bench.driver.ensure(spec, sandbox_id)
    await bench.again().ensure(spec, sandbox_id)  # another process, after this one's reply was lost
    assert bench.init_pid(sandbox_id) == first


async def test_ensure_at_once_from_several_sides_makes_one(bench: Bench) -> None:
    sandbox_id, spec = await bench.slot()
    await asyncio.gather(*(bench.again().ensure(spec, sandbox_id) for _ in range(4)))
    assert [found.sandbox_id for found in await bench.driver.list()] == [sandbox_id]
    assert (await bench.run(await _gate(bench, sandbox_id), "/bin/echo", "one")).out == b"one\n"


async def test_ensure_with_another_spec_is_a_conflict_and_the_first_lives_on(bench: Bench) -> None:
    sandbox_id, spec = await bench.slot()
    await bench.driver.ensure(spec, sandbox_id)
    with pytest.raises(SandboxConflict) as caught:
        await bench.driver.ensure(replace(spec, resources=replace(SMALL, nofile=300)), sandbox_id)
    assert caught.value.data["sandbox_id"] == sandbox_id
    assert isinstance(await bench.driver.observe(sandbox_id), Running)


async def test_what_resize_may_change_is_no_conflict(bench: Bench) -> None:
    sandbox_id, spec = await bench.slot()
    await bench.driver.ensure(spec, sandbox_id)
    await bench.driver.ensure(replace(spec, resources=replace(SMALL, cpus=0.5, pids=70)), sandbox_id)


async def test_a_missing_image_is_named_and_leaves_nothing(bench: Bench) -> None:
    sandbox_id, spec = await bench.slot()
    missing = replace(spec, image="missing")
    with pytest.raises(ImageMissing) as caught:
        await bench.driver.ensure(missing, sandbox_id)
    assert caught.value.data["image"] == "missing"
    assert await bench.driver.observe(sandbox_id) == Absent()


async def test_ensure_after_the_box_ended_starts_it_again(bench: Bench) -> None:
    sandbox_id, spec = await bench.slot()
    await bench.driver.ensure(spec, sandbox_id)
    await _end(bench, sandbox_id)
    await bench.driver.ensure(spec, sandbox_id)
    async with bench.owner(sandbox_id) as owner:
        assert owner.hello.state == "idle"


async def test_a_maker_killed_in_the_middle_leaves_what_ensure_completes(bench: Bench) -> None:
    """SIGKILL as soon as anything of it is there: another maker finds no *end* that never was, and makes it run."""
    sandbox_id, spec = await bench.slot()
    maker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MAKER, *bench.maker(), spec.image, str(spec.slot), sandbox_id),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    await until(lambda: _there(bench, sandbox_id), "something of it is there")
    maker.kill()
    await maker.wait()
    assert not isinstance(await bench.driver.observe(sandbox_id), Ended)
    await bench.driver.ensure(spec, sandbox_id)
    async with bench.owner(sandbox_id) as owner:
        assert owner.hello.state == "idle"


# -- observe, list, watch ---------------------------------------------------------------------------------------------


async def test_what_never_was_is_absent(bench: Bench) -> None:
    assert await bench.driver.observe("sbx_never") == Absent()
    assert await bench.driver.list() == []
    assert await bench.driver.usage("sbx_never") is None


async def test_init_killed_from_outside_is_an_end_with_its_code(bench: Bench) -> None:
    sandbox_id = await bench.sandbox()
    os.kill(bench.init_pid(sandbox_id), signal.SIGKILL)
    await until(lambda: _ended(bench, sandbox_id), "ended")
    status = await bench.driver.observe(sandbox_id)
    assert isinstance(status, Ended) and status.exit_code == 137 and not status.oom


async def test_list_says_what_exists_and_whether_it_runs(bench: Bench) -> None:
    one, two = await bench.sandbox(), await bench.sandbox()
    await _end(bench, two)
    found = {row.sandbox_id: row for row in await bench.again().list()}
    assert found.keys() == {one, two}
    assert found[one].running and not found[two].running
    assert found[one].created_at.tzinfo is not None


async def test_watch_hints_at_what_ended(bench: Bench) -> None:
    sandbox_id = await bench.sandbox()
    heard: set[str] = set()

    async def listen() -> None:
        async for hint in bench.driver.watch():
            heard.add(hint)

    async with asyncio.timeout(30):
        listener = asyncio.create_task(listen())
        try:
            # Hints may drop, above all before the listener is there: so things happen until one is heard.
            while sandbox_id not in heard:
                other = await bench.sandbox()
                await bench.driver.remove(other)
                await bench.driver.remove(sandbox_id)
                await bench.driver.ensure((await bench.slot(sandbox_id))[1], sandbox_id)
                await asyncio.sleep(0.05)
        finally:
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener


# -- connect ----------------------------------------------------------------------------------------------------------


async def test_many_streams_at_once_with_half_close(bench: Bench) -> None:
    sandbox_id = await bench.opened()
    ran = await asyncio.gather(*(bench.run(sandbox_id, "/bin/echo", str(n)) for n in range(6)))
    assert [each.out for each in ran] == [b"%d\n" % n for n in range(6)]
    line = await bench.driver.connect(sandbox_id)
    line.writer.write_eof()
    async with asyncio.timeout(30):
        await line.reader.read()  # init answers our end with its own
    await line.close()
    await line.close()


async def test_connect_where_nobody_listens_is_link_lost(bench: Bench) -> None:
    with pytest.raises(LinkLost):
        await bench.driver.connect("sbx_never")
    sandbox_id = await bench.sandbox()
    await _end(bench, sandbox_id)
    with pytest.raises(LinkLost):
        await bench.driver.connect(sandbox_id)


async def test_a_sandbox_outlives_the_driver_that_made_it(bench: Bench) -> None:
    sandbox_id = await bench.opened()
    await bench.sh(sandbox_id, "echo kept > /workspace/note")
    other = bench.again()
    assert isinstance(await other.observe(sandbox_id), Running)
    line = await other.connect(sandbox_id)
    await line.close()
    await other.remove(sandbox_id)
    assert await bench.driver.observe(sandbox_id) == Absent()
    assert bench.store.files(sandbox_id).open("note").read(0, 10) == b"kept\n"


# -- enclose, pause, resize, usage ------------------------------------------------------------------------------------


async def test_pause_freezes_all_but_init(bench: Bench) -> None:
    assert (await bench.driver.capabilities()).work_cgroup, "this host has no cgroup v2 freezer"
    sandbox_id = await bench.opened()
    await bench.spawn(sandbox_id, "/bin/bash", "-c", "while :; do echo x >> /workspace/beat; done")
    beat = bench.volume(sandbox_id) / "workspace" / "beat"
    await until(lambda: _grows(beat), "the writer writes")
    await bench.driver.pause(sandbox_id)
    await bench.driver.pause(sandbox_id)
    frozen_at = beat.stat().st_size
    status = await bench.driver.observe(sandbox_id)
    assert isinstance(status, Running) and status.paused
    for _ in range(20):  # init answers, many times over: time for a writer that is not frozen
        async with bench.owner(sandbox_id) as owner:
            await owner.stat()
    assert beat.stat().st_size == frozen_at
    await bench.driver.unpause(sandbox_id)
    await bench.driver.unpause(sandbox_id)
    await until(lambda: _grows(beat), "it writes again")
    status = await bench.driver.observe(sandbox_id)
    assert isinstance(status, Running) and not status.paused


async def test_enclose_is_repeatable_and_says_when_the_spawner_is_gone(bench: Bench) -> None:
    sandbox_id = await bench.sandbox()
    async with bench.owner(sandbox_id) as owner:
        for _ in range(2):
            assert await bench.driver.enclose(sandbox_id, owner.hello.spawner_pid)
    with pytest.raises(LinkLost):
        await bench.driver.enclose(sandbox_id, 999_999)
    await _end(bench, sandbox_id)
    with pytest.raises(LinkLost):
        await bench.driver.enclose(sandbox_id, 2)


async def test_resize_answers_what_the_cgroup_says(bench: Bench) -> None:
    sandbox_id = await bench.opened()
    wanted = replace(SMALL, cpus=0.5, memory_bytes=SMALL.memory_bytes * 2, pids=96)
    for _ in range(2):
        resized = await bench.driver.resize(sandbox_id, wanted)
        assert resized.fit is Fit.APPLIED, resized.detail
        assert resized.measured == wanted
    await _end(bench, sandbox_id)
    assert (await bench.driver.resize(sandbox_id, wanted)).fit is Fit.DEFERRED


async def test_usage_of_what_runs_and_of_what_ended(bench: Bench) -> None:
    sandbox_id = await bench.opened()
    assert await bench.driver.usage(sandbox_id) is not None
    await _end(bench, sandbox_id)
    assert await bench.driver.usage(sandbox_id) is None


async def test_a_spec_this_driver_cannot_give_is_infeasible(bench: Bench) -> None:
    if not (await bench.driver.capabilities()).live_resize:
        return  # bounds nothing, so it can give everything
    sandbox_id, spec = await bench.slot()
    with pytest.raises(Infeasible) as caught:
        await bench.driver.ensure(replace(spec, resources=replace(SMALL, cpus=4096)), sandbox_id)
    assert caught.value.data["field"] == "cpus"
    assert await bench.driver.observe(sandbox_id) == Absent()


# -- remove -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "paused", "ended", "never"])
async def test_remove_from_every_state_and_again(bench: Bench, state: str) -> None:
    sandbox_id, spec = await bench.slot()
    if state != "never":
        await bench.driver.ensure(spec, sandbox_id)
        await _gate(bench, sandbox_id)
        await bench.spawn(sandbox_id, "/bin/sleep", "1000")
    if state == "paused":
        await bench.driver.pause(sandbox_id)
    if state == "ended":
        await _end(bench, sandbox_id)
    pid = bench.init_pid(sandbox_id) if state in ("running", "paused") else None
    trace = bench.trace(sandbox_id) if state != "never" else sandbox_id
    await bench.driver.remove(sandbox_id)
    await bench.driver.remove(sandbox_id)
    assert await bench.driver.observe(sandbox_id) == Absent()
    assert sandbox_id not in [found.sandbox_id for found in await bench.driver.list()]
    if pid is not None:
        assert not Path(f"/proc/{pid}").exists()
    left = await asyncio.to_thread(lambda: [*Path("/sys/fs/cgroup").rglob(f"*{trace}*")])
    assert left == []


async def test_removals_at_once_all_succeed(bench: Bench) -> None:
    sandbox_id = await bench.sandbox()
    await asyncio.gather(*(bench.again().remove(sandbox_id) for _ in range(4)))
    assert await bench.driver.observe(sandbox_id) == Absent()


# -- steps ------------------------------------------------------------------------------------------------------------


async def _gate(bench: Bench, sandbox_id: str) -> str:
    await bench.open_gate(sandbox_id)
    return sandbox_id


async def _there(bench: Bench, sandbox_id: str) -> bool:
    return any(found.sandbox_id == sandbox_id for found in await bench.driver.list())


async def _ended(bench: Bench, sandbox_id: str) -> bool:
    return isinstance(await bench.driver.observe(sandbox_id), Ended)


async def _end(bench: Bench, sandbox_id: str) -> None:
    os.kill(bench.init_pid(sandbox_id), signal.SIGKILL)
    await until(lambda: _ended(bench, sandbox_id), "ended")


async def _grows(file: Path) -> bool:
    before = file.stat().st_size if file.exists() else 0
    await asyncio.sleep(0.01)
    return file.exists() and file.stat().st_size > before
