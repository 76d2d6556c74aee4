"""The engine on real containers: what only a container can show. Memory, limits, an image that is not there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.drivers.docker import DockerDriver
from orchestrator.drivers.docker_options import Installation
from orchestrator.execution import MIB, OutcomeKind, PauseWant, Reason, Resources, ResourcesWant
from orchestrator.lifecycle import ExecutionState
from tests.engine.stage import Stage, kinds, printed, stage, stdout
from tests.sandboxes import SECCOMP, TEST_LABELS

pytestmark = [pytest.mark.docker, pytest.mark.root]

SMALL = Resources(cpus=1.0, memory_bytes=128 * MIB, pids=64, nofile=256, tmp_bytes=16 * MIB)
#: Takes 400 MB, which its limit does not give.
GLUTTON = "python3 -c 'b = bytearray(400 << 20); print(len(b))'"


@pytest.fixture
async def here(redis_url: str, installation: str, short_dir: Path, sandbox_image: str) -> AsyncIterator[Stage]:
    given = Installation(installation, seccomp=SECCOMP.read_text(), labels=TEST_LABELS)
    driver = DockerDriver(given, short_dir / "slots")
    async with stage(redis_url, installation, short_dir, driver=driver, image=sandbox_image, look_s=0.3) as made:
        yield made


async def test_a_task_in_a_container_of_its_own(here: Stage) -> None:
    worker = here.work()
    asked = await here.submit("id -u; hostname; ls /sys/class/net; echo done > artifacts/result", resources=SMALL)
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
    told = await here.history(asked)
    uid, hostname, network = stdout(told).decode().split()
    assert (uid, network) == ("1000", "lo")
    assert record.sandbox_id is not None and hostname.endswith(record.sandbox_id[-8:])
    assert [e.data["path"] for e in told if e.type == events.ARTIFACT] == ["result"]
    await here.idle(worker)
    assert await here.parts.driver.list() == []


async def test_a_child_killed_for_memory_is_told_while_the_run_goes_on(here: Stage) -> None:
    here.work()
    asked = await here.bash(f"{GLUTTON}; echo $?; read line; echo still here", resources=SMALL)
    await here.saw(asked, printed("137"))
    event = await here.saw(asked, lambda event: event.type == events.SANDBOX_OOM)
    assert event.data["kills"] >= 1
    await here.send(asked, "m", "go on")
    record = await here.ended(asked)
    told = await here.history(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
    assert stdout(told) == b"137\nstill here\n"
    assert kinds(told).count(events.SANDBOX_OOM) == 1


async def test_a_harness_killed_for_memory_has_failed_by_it(here: Stage) -> None:
    here.work()
    record = await here.ended(await here.bash(f"exec {GLUTTON}", resources=SMALL))
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.reason) == (OutcomeKind.FAILED, Reason.OOM)


async def test_more_memory_for_a_running_one(here: Stage) -> None:
    here.work()
    asked = await here.bash(f"read line; {GLUTTON}", resources=SMALL)
    await here.until(asked, lambda record: record.state is ExecutionState.RUNNING)
    await here.parts.executions.want(asked.id, ResourcesWant("r", memory_bytes=640 * MIB, cpus=1.5))
    event = await here.saw(asked, lambda event: event.type == events.SANDBOX_RESIZED)
    assert event.data["result"] == "applied"
    assert event.data["measured"]["memory_bytes"] == 640 * MIB
    await here.send(asked, "m", "eat")
    record = await here.ended(asked)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
    assert record.resources.memory_bytes == 640 * MIB


async def test_paused_it_prints_nothing_and_its_owner_may_change(here: Stage) -> None:
    first = here.work(lease_s=1.0)
    count = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.01; done"
    asked = await here.bash(count, resources=SMALL)
    await here.saw(asked, printed("10\n"))
    await here.parts.executions.want(asked.id, PauseWant("p", True))
    await here.until(asked, lambda record: record.state is ExecutionState.PAUSED)
    before = stdout(await here.history(asked))
    await here.stop(first)
    here.work()
    await here.until(asked, lambda record: record.epoch == 2)
    assert stdout(await here.history(asked)) == before
    await here.parts.executions.want(asked.id, PauseWant("q", False))
    await here.ended(asked)
    assert stdout(await here.history(asked)).split() == [b"%d" % n for n in range(1, 201)]


async def test_an_image_nobody_has(here: Stage) -> None:
    here.work()
    record = await here.ended(await here.bash("true", image="carrel-no-such-image:never"))
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.reason) == (OutcomeKind.FAILED, Reason.IMAGE_MISSING)
    assert "carrel-no-such-image" in record.outcome.message
