"""A container engine of the tests' own, killed under running work and started again: never stuck, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from ulid import ULID

from orchestrator import events
from orchestrator.events import Cursor
from orchestrator.execution import Execution, OutcomeKind, Reason, Resources, RetryPolicy, Spec
from orchestrator.lifecycle import ExecutionState
from tests.faults.ground import Ground, ground
from tests.faults.judge import told
from tests.private_dockerd import PrivateDockerd

pytestmark = [
    pytest.mark.docker,
    pytest.mark.root,
    pytest.mark.full,
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("dockerd"),
]

EACH = 3
#: Counts; in a second attempt it only says so.
COUNT = (
    "echo start >> starts; [ $EXECUTION_ATTEMPT = 1 ] || { echo again; exit 0; }; "
    "exec 9<> <(:); for n in $(seq $1); do echo $n; read -t 0.05 -u 9; done; exit 0"
)


@pytest.fixture(scope="module")
def engine(sandbox_image: str) -> Iterator[PrivateDockerd]:
    with PrivateDockerd() as made:
        made.start(live_restore=True)
        made.load(sandbox_image)
        made.kill()
        yield made


async def running(here: Ground, lines: int, retry: RetryPolicy) -> list[Execution]:
    """Executions that print, all of them in the middle of it."""
    made = []
    for _ in range(EACH):
        spec = Spec(
            harness="command",
            command=("bash", "-c", COUNT, "harness", str(lines)),
            resources=Resources(memory_bytes=128 << 20, pids=64),
            retry=retry,
        )
        done = await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")
        made.append(done.execution)
    for execution in made:
        async for page in here.history.follow(execution.id, Cursor()):
            if any(event.type == events.OUTPUT for event in page.events):
                break
    return made


async def ended(here: Ground, execution: Execution) -> Execution:
    async for page in here.history.follow(execution.id, Cursor()):
        if page.closed:
            break
    return await here.executions.get(execution.id)


@pytest.fixture
def environment(engine: PrivateDockerd, sandbox_image: str) -> dict[str, str]:
    return {"CARREL_DRIVER": "docker", "CARREL_DOCKER_HOST": engine.url, "CARREL_IMAGE": sandbox_image}


async def test_without_live_restore_each_is_lost_or_tried_again(
    engine: PrivateDockerd, environment: dict[str, str]
) -> None:
    async with ground(**environment) as here:
        await asyncio.to_thread(engine.start, live_restore=False)
        try:
            await here.worker()
            once = await running(here, 100_000, RetryPolicy(on_lost="end"))
            again = await running(here, 100_000, RetryPolicy(on_lost="retry", backoff_s=0.1))
            await asyncio.to_thread(engine.kill)
            for execution in (*once, *again):  # it is away: that is no reason to end anything
                assert (await here.executions.get(execution.id)).state is ExecutionState.RUNNING
            await asyncio.to_thread(engine.start, live_restore=False)
            for execution in once:
                record = await ended(here, execution)
                assert record.outcome is not None, here.last_logs()
                assert record.outcome.kind is OutcomeKind.LOST
                assert record.outcome.reason in (Reason.INIT_LOST, Reason.SANDBOX_LOST)
                assert record.attempt == 1
            for execution in again:
                record = await ended(here, execution)
                assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED, here.last_logs()
                assert record.attempt == 2
                history = await told(here, execution)
                printed = b"".join(e.body or b"" for e in history if e.type == events.OUTPUT).split()
                assert printed == [*(b"%d" % n for n in range(1, len(printed))), b"again"]
        finally:
            await asyncio.to_thread(engine.kill)


async def test_with_live_restore_nothing_is_noticed(engine: PrivateDockerd, environment: dict[str, str]) -> None:
    async with ground(**environment) as here:
        await asyncio.to_thread(engine.start, live_restore=True)
        try:
            worker = await here.worker()
            executions = await running(here, 400, RetryPolicy())
            await asyncio.to_thread(engine.kill)
            await worker.kill()  # its successor finds an engine that does not answer
            await worker.start()
            await asyncio.to_thread(engine.start, live_restore=True)
            for execution in executions:
                record = await ended(here, execution)
                assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED, here.last_logs()
                assert (record.attempt, record.failures) == (1, 0)
                history = await told(here, execution)
                printed = b"".join(e.body or b"" for e in history if e.type == events.OUTPUT).split()
                assert printed == [b"%d" % n for n in range(1, 401)]
        finally:
            await asyncio.to_thread(engine.kill)
