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


@pytest.mark.parametrize(("cycles", "kills"), [(5, 5), pytest.param(100, 100, marks=pytest.mark.full)])
async def test_every_cycle_is_whole(cycles: int, kills: int) -> None:
    """Something dies in every cycle. In two of three it sleeps before the next message comes; in the third that is sent
    while it falls asleep, which it then may not do."""
    async with ground() as here:
        for _ in range(2):
            await here.worker()
        ledger = Harness("ledger", ("/bin/bash", "-c", LEDGER), resumes=True)
        spec = Spec(harness=ledger.name, declared=ledger, snapshots=SnapshotPolicy(at_end=False))
        execution = (await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")).execution
        nemesis = Nemesis(here, seed=7, mischief={"kill_worker": 4, "stop_worker": 2, "cut_line": 3, "kill_store": 1})
        cursor = Cursor()

        async def saw(text: bytes) -> None:
            nonlocal cursor
            while True:
                async for page in here.history.follow(execution.id, cursor):
                    cursor = page.next
                    assert not page.closed, here.last_logs()
                    if any(_says(event, text) for event in page.events):
                        return

        for cycle in range(1, cycles + 1):
            breaking = asyncio.create_task(nemesis.run(kills * cycle // cycles))
            await here.history.send(execution.id, f"m{cycle}", f"{cycle}".encode())
            await saw(f"got {cycle} as {cycle}\n".encode())
            await here.executions.want(execution.id, HibernateWant(f"h{cycle}"))
            while cycle % 3 and (await here.executions.get(execution.id)).state is not ExecutionState.HIBERNATED:
                await asyncio.sleep(0.02)
            await breaking
        await here.history.send(execution.id, "end", b"end")
        async for page in here.history.follow(execution.id, cursor):
            if page.closed:
                break

        record, history = await here.executions.get(execution.id), await told(here, execution)
        assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED, here.last_logs()
        assert [event.seq for event in history] == list(range(1, len(history) + 1))
        slept = sum(event.data.get("to") == ExecutionState.HIBERNATED for event in history)
        assert record.attempt == slept + 1 and slept >= cycles - cycles // 3
        assert record.failures == 0
        said = b"".join(event.body or b"" for event in history if event.type == events.OUTPUT).decode().splitlines()
        assert [line for line in said if line.startswith("up")] == [f"up {n}" for n in range(1, slept + 2)]
        assert [line for line in said if line.startswith("got")] == [f"got {n} as {n}" for n in range(1, cycles + 1)]
        vol = here.workspaces.slot(record.sandbox_id or "").path / "vol" / "workspace"
        assert (vol / "log").read_text().split() == [str(n) for n in range(1, cycles + 1)]
        assert (vol / "starts").read_text().split() == [str(n) for n in range(1, slept + 2)]
        made = [event.data["cut"]["inbox"] for event in history if event.type == events.SNAPSHOT_CREATED]
        assert (
            len(made) == slept and made == sorted(set(made)) and {n for n in range(1, cycles + 1) if n % 3} <= {*made}
        )
        delivered = [event.data["n"] for event in history if event.type == events.MESSAGE_DELIVERED]
        assert delivered == list(range(1, cycles + 2))
        print(f"cycles={cycles} slept={slept} broken={dict(nemesis.done)} events={len(history)}")


def _says(event: Event, text: bytes) -> bool:
    return event.type == events.OUTPUT and text in (event.body or b"")
