"""One execution asleep and awake, again and again, while workers and the store die: nothing is lost, nothing twice."""

from __future__ import annotations

import asyncio

import pytest
from ulid import ULID

from orchestrator import events
from orchestrator.events import Cursor, Event
from orchestrator.execution import HibernateWant, OutcomeKind, SnapshotPolicy, Spec
from orchestrator.harnesses import Harness
from orchestrator.lifecycle import ExecutionState
from tests.faults.ground import ground
from tests.faults.judge import told
from tests.faults.nemesis import Nemesis

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200), pytest.mark.xdist_group("faults")]

#: Every message is one line of the log, on disk before it is answered; a start is one line of `starts`.
LEDGER = """
echo $EXECUTION_ATTEMPT >> starts; echo up $EXECUTION_ATTEMPT
while read m; do
  [ "$m" = end ] && exit 0
  echo "$m" >> log; echo "got $m as $(wc -l < log)"
done
exit 1
"""


@pytest.mark.parametrize(("cycles", "kills"), [(20, 8), pytest.param(100, 60, marks=pytest.mark.full)])
async def test_every_cycle_is_whole(cycles: int, kills: int) -> None:
    async with ground() as here:
        for _ in range(2):
            await here.worker()
        ledger = Harness("ledger", ("/bin/bash", "-c", LEDGER), resumes=True)
        spec = Spec(harness=ledger.name, declared=ledger, snapshots=SnapshotPolicy(at_end=False))
        execution = (await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")).execution
        cursor = Cursor()

        async def saw(text: bytes) -> None:
            nonlocal cursor
            while True:
                async for page in here.history.follow(execution.id, cursor):
                    cursor = page.next
                    assert not page.closed, here.last_logs()
                    if any(_says(event, text) for event in page.events):
                        return

        async def live() -> None:
            for cycle in range(1, cycles + 1):
                await here.history.send(execution.id, f"m{cycle}", f"{cycle}".encode())
                await saw(f"got {cycle} as {cycle}\n".encode())
                await here.executions.want(execution.id, HibernateWant(f"h{cycle}"))
                while (await here.executions.get(execution.id)).state is not ExecutionState.HIBERNATED:
                    await asyncio.sleep(0.02)
            await here.history.send(execution.id, "end", b"end")

        nemesis = Nemesis(here, seed=7, mischief={"kill_worker": 4, "stop_worker": 2, "cut_line": 3, "kill_store": 1})
        breaking = asyncio.create_task(nemesis.run(kills))
        await live()
        await breaking
        async for page in here.history.follow(execution.id, cursor):
            if page.closed:
                break

        record, history = await here.executions.get(execution.id), await told(here, execution)
        assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED, here.last_logs()
        assert [event.seq for event in history] == list(range(1, len(history) + 1))
        said = b"".join(event.body or b"" for event in history if event.type == events.OUTPUT).decode()
        expected = [f"up {n}\ngot {n} as {n}\n" for n in range(1, cycles + 1)]
        assert said == "".join(expected) + f"up {cycles + 1}\n"
        vol = here.workspaces.slot(record.sandbox_id or "").path / "vol" / "workspace"
        assert (vol / "log").read_text().split() == [str(n) for n in range(1, cycles + 1)]
        assert (vol / "starts").read_text().split() == [str(n) for n in range(1, cycles + 2)]
        assert record.attempt == cycles + 1
        made = [event for event in history if event.type == events.SNAPSHOT_CREATED]
        assert [event.data["cut"]["inbox"] for event in made] == list(range(1, cycles + 1))
        delivered = [event.data["n"] for event in history if event.type == events.MESSAGE_DELIVERED]
        assert delivered == list(range(1, cycles + 2))


def _says(event: Event, text: bytes) -> bool:
    return event.type == events.OUTPUT and text in (event.body or b"")
