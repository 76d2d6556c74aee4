"""Snapshots by period while workers, lines and the store die: each is there or was never said, and of one moment."""

from __future__ import annotations

import pytest
from ulid import ULID

from orchestrator import events
from orchestrator.events import Cursor
from orchestrator.execution import CancelWant, OutcomeKind, SnapshotPolicy, Spec
from orchestrator.stores.redis import Keys, RedisSnapshots
from tests.faults.ground import ground
from tests.faults.judge import told
from tests.faults.nemesis import Nemesis

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200), pytest.mark.xdist_group("faults")]

#: Prints a line, then writes it: what the files hold was said before.
COUNTER = "exec 9<> <(:); i=0; while :; do i=$((i+1)); echo $i; echo $i >> log; read -t 0.01 -u 9; done"


@pytest.mark.parametrize(("kills", "least"), [(6, 3), pytest.param(60, 30, marks=pytest.mark.full)])
async def test_each_is_of_one_moment(kills: int, least: int) -> None:
    async with ground() as here:
        for _ in range(2):
            await here.worker()
        policy = SnapshotPolicy(every_s=0.3, at_end=False)
        spec = Spec(harness="command", command=("bash", "-c", COUNTER), snapshots=policy)
        execution = (await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")).execution
        nemesis = Nemesis(here, seed=11, mischief={"kill_worker": 4, "stop_worker": 3, "cut_line": 2, "kill_store": 1})
        await nemesis.run(kills)
        created: list[str] = []
        async for page in here.history.follow(execution.id, Cursor()):
            created += [event.data["id"] for event in page.events if event.type == events.SNAPSHOT_CREATED]
            if len(created) >= least:
                break
        await here.executions.want(execution.id, CancelWant("c", 0.0))
        async for page in here.history.follow(execution.id, Cursor()):
            if page.closed:
                break

        record, history = await here.executions.get(execution.id), await told(here, execution)
        assert record.outcome is not None and record.outcome.kind is OutcomeKind.CANCELLED, here.last_logs()
        assert record.attempt == 1, here.last_logs()
        assert [event.seq for event in history] == list(range(1, len(history) + 1))
        known = {one.id: one for one in await RedisSnapshots(here.server, Keys(here.installation)).on_host("here")}
        checked: list[str] = []
        output = b""
        cuts = {e.data["id"]: e.data["cut"]["seq"] for e in history if e.type == events.SNAPSHOT_CREATED}
        by_seq = sorted((seq, snapshot_id) for snapshot_id, seq in cuts.items())
        for event in history:
            while by_seq and by_seq[0][0] < event.seq:
                _, snapshot_id = by_seq.pop(0)
                said = output.splitlines()
                opened = here.workspaces.snapshot_files(snapshot_id).open("log")
                try:
                    log = opened.read(0, opened.stat.size_bytes).splitlines()
                finally:
                    opened.close()
                assert log == said[: len(log)] and len(said) - 1 <= len(log), snapshot_id
                checked.append(snapshot_id)
            if event.type == events.OUTPUT and event.data["stream"] == "stdout":
                output += event.body or b""
        assert set(checked) == set(cuts) == set(known), "each is said, recorded and there"
        assert [int(n) for n in output.split()] == list(range(1, len(output.split()) + 1))
        print(f"snapshots={len(checked)} broken={dict(nemesis.done)} lines={len(output.split())}")
