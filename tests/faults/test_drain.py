"""SIGTERM to a worker process: it hands over and goes; the next one goes on at once, the sandbox notices nothing."""

from __future__ import annotations

import asyncio
import signal

import pytest
from ulid import ULID

from orchestrator import events
from orchestrator.execution import Spec
from tests.faults.campaign import all_ended
from tests.faults.ground import ground
from tests.faults.judge import judge, told

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

#: Prints, waits to be told, prints on: it lasts as long as the deploys take.
HALVES = (
    "echo start >> starts; for n in $(seq 300); do echo $n; done; read m; for n in $(seq 301 600); do echo $n; done"
)


async def test_three_deploys_in_a_row() -> None:
    async with ground() as here:
        before = await here.worker(CARREL_LEASE_S="3600")  # a lease that ran out would outlast the test
        executions = []
        for _ in range(6):
            spec = Spec(harness="command", command=("bash", "-c", HALVES))
            done = await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")
            executions.append(done.execution)
        for deploy in range(3):
            for execution in executions:  # in the middle of the work, under this worker
                while (record := await here.executions.get(execution.id)).epoch != deploy + 1 or record.src < 2:
                    await asyncio.sleep(0.02)
            after = await here.worker(CARREL_LEASE_S="3600")
            before.send(signal.SIGTERM)
            assert before.child is not None and await before.child.wait() == 0, here.last_logs()
            before = after
        for execution in executions:
            await here.history.send(execution.id, "m", b"go on")
        await all_ended(here, executions)
        verdict = await judge(here, executions, 600)
        assert verdict.clean, verdict
        for execution in executions:
            history = await told(here, execution)
            assert sum(event.type == events.ADOPTED for event in history) == 3
