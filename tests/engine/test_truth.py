"""A writer that keeps a database and a log busy while it is snapshotted and forked: every copy is of one moment."""

from __future__ import annotations

from functools import partial

import pytest

from orchestrator import events
from orchestrator.execution import Execution, OutcomeKind, SnapshotPolicy
from orchestrator.snapshots import Origin, Snapshot
from tests.engine.stage import Stage, printed, stdout
from tests.engine.test_snapshots import content, cut
from tests.truth import WRITER, agree, lines_by, look

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(("snapshots", "forks"), [(12, 3), pytest.param(200, 50, marks=pytest.mark.full)])
async def test_every_copy_is_of_one_moment(everywhere: Stage, snapshots: int, forks: int) -> None:
    here = everywhere
    here.work(lease_s=30.0)
    never = SnapshotPolicy(at_end=False)
    command = ("python3", "-c", WRITER)
    asked = await here.submit(harness="command", command=command, snapshots=never)
    await here.saw(asked, printed("50\n"))
    taken: list[Snapshot] = []
    made: list[Execution] = []
    for n in range(snapshots):
        taken.append(await cut(here, asked))
        if len(made) < forks and n % (snapshots // forks) == 0:
            origin = Origin(asked.id, taken[-1].id, taken[-1].cut.seq)
            made.append(await here.submit(harness="command", command=command, snapshots=never, origin=origin))
    await here.cancel(asked, grace_s=0)
    await here.ended(asked)
    history = await here.history(asked)
    said_by = lines_by(history)
    moments = []
    for snapshot in taken:
        said = said_by(snapshot.cut.seq)
        log, last = look(partial(content, here, snapshot.id))
        assert agree(said, log, last)
        moments.append((log, last))
    assert moments == sorted(moments) and moments[-1] > moments[0], "it went on between"
    assert len(made) == forks
    for fork in made:
        record = await here.ended(fork)
        assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
        assert fork.spec.origin is not None
        at = [one.id for one in taken].index(fork.spec.origin.snapshot_id)
        assert stdout(await here.history(fork)).decode() == f"whole ok {moments[at][1]}\n"
    assert sum(event.type == events.SNAPSHOT_CREATED for event in history) == snapshots
