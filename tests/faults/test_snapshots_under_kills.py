"""Snapshots by period while workers, lines and the store die: each is there or was never said, and of one moment."""

from __future__ import annotations

import asyncio
import signal

import pytest
from ulid import ULID

from orchestrator import events
from orchestrator.events import Cursor
from orchestrator.execution import CancelWant, Execution, OutcomeKind, SnapshotPolicy, SnapshotWant, Spec
from orchestrator.snapshots import KeepPolicy
from orchestrator.stores.redis import Keys, RedisSnapshots
from tests.faults.ground import Ground, ground
from tests.faults.judge import told
from tests.faults.nemesis import Nemesis
from tests.truth import lines_by

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200), pytest.mark.xdist_group("faults")]

#: Prints a line, then writes it: what the files hold was said before.
COUNTER = "exec 9<> <(:); i=0; while :; do i=$((i+1)); echo $i; echo $i >> log; read -t 0.01 -u 9; done"


@pytest.mark.parametrize(("kills", "least"), [(6, 3), pytest.param(60, 30, marks=pytest.mark.full)])
async def test_each_is_of_one_moment(kills: int, least: int) -> None:
    async with ground() as here:
        for _ in range(2):
            await here.worker()
        policy = SnapshotPolicy(every_s=0.3, at_end=False, keep=KeepPolicy(last=100_000))  # none goes meanwhile
        spec = Spec(harness="command", command=("bash", "-c", COUNTER), snapshots=policy)
        execution = (await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")).execution
        nemesis = Nemesis(here, seed=11, mischief={"kill_worker": 4, "stop_worker": 3, "cut_line": 2, "kill_store": 1})
        await nemesis.run(kills)
        created: list[str] = []
        async for page in here.history.follow(execution.id, Cursor()):
            created += [event.data["id"] for event in page.events if event.type == events.SNAPSHOT_CREATED]
            if len(created) >= least:
                break
        taken, lines = await ended(here, execution)
        print(f"snapshots={taken} broken={dict(nemesis.done)} lines={lines}")


async def test_a_stopped_owner_names_and_thaws_nothing() -> None:
    """Stopped in the middle of its copy for longer than its lease, it goes on while the next one is in the middle of
    the same: the work ran in between, so what it has is of no moment."""
    async with ground() as here:
        first = await here.worker()
        many = f"mkdir m; for i in $(seq 3000); do echo $i > m/$i; done; {COUNTER}"
        spec = Spec(harness="command", command=("bash", "-c", many), snapshots=SnapshotPolicy(at_end=False))
        execution = (await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")).execution
        async for page in here.history.follow(execution.id, Cursor()):
            if any(event.type == events.OUTPUT for event in page.events):
                break
        want = SnapshotWant(f"snp_{str(ULID()).lower()}")
        await here.executions.want(execution.id, want)
        await copies(here, want.id, 1)
        first.send(signal.SIGSTOP)
        await here.worker()
        await copies(here, want.id, 2)
        first.send(signal.SIGCONT)
        async for page in here.history.follow(execution.id, Cursor()):
            if any(event.type == events.SNAPSHOT_CREATED for event in page.events):
                break
        assert await ended(here, execution) == (1, await said(here, execution))


async def copies(here: Ground, snapshot_id: str, count: int) -> None:
    """Wait until so many are being made at the same time."""
    folder = here.folder / "snapshots"
    while len(list(folder.glob(f".new-{snapshot_id}-*"))) < count:
        assert not (folder / snapshot_id).exists(), "too fast for this test"
        await asyncio.sleep(0)


async def said(here: Ground, execution: Execution) -> int:
    """Lines, in its history."""
    output = b"".join(e.body or b"" for e in await told(here, execution) if e.type == events.OUTPUT)
    return output.count(b"\n")


async def ended(here: Ground, execution: Execution) -> tuple[int, int]:
    """Cancel it, and compare each of its snapshots with its history at that moment; how many, and how many lines."""
    await here.executions.want(execution.id, CancelWant("c", 0.0))
    async for page in here.history.follow(execution.id, Cursor()):
        if page.closed:
            break
    record, history = await here.executions.get(execution.id), await told(here, execution)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.CANCELLED, here.last_logs()
    assert record.attempt == 1, here.last_logs()
    assert [event.seq for event in history] == list(range(1, len(history) + 1))
    known = {one.id for one in await RedisSnapshots(here.server, Keys(here.installation)).on_host("here")}
    cuts = {event.data["id"]: event.data["cut"]["seq"] for event in history if event.type == events.SNAPSHOT_CREATED}
    assert set(cuts) == known, "each is said and recorded"
    lines_by_then = lines_by(history)
    output = b"".join(event.body or b"" for event in history if event.type == events.OUTPUT).splitlines()
    assert [int(line) for line in output] == list(range(1, len(output) + 1))
    for snapshot_id, seq in cuts.items():
        opened = here.workspaces.snapshot_files(snapshot_id).open("log")
        try:
            log = opened.read(0, opened.stat.size_bytes).splitlines()
        finally:
            opened.close()
        assert log == output[: len(log)] and lines_by_then(seq) - 1 <= len(log) <= lines_by_then(seq), snapshot_id
    return len(cuts), len(output)
