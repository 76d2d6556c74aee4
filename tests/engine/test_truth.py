"""A writer that keeps a database and a log busy while it is snapshotted and forked: every copy is of one moment."""

from __future__ import annotations

import bisect
import hashlib
import sqlite3
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.events import Event
from orchestrator.execution import Execution, OutcomeKind, SnapshotPolicy
from orchestrator.snapshots import Origin, Snapshot
from orchestrator.workspace import Files
from tests.engine.stage import Stage, printed, stdout
from tests.engine.test_snapshots import cut

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]

KEPT = 300  # rows: the oldest gives its place up, so pages are written over, and no copy grows without end
#: Says n, writes n to the log, commits n: each is at most one behind the one before. A fork looks and ends.
WRITER = f"""
import hashlib, os, sqlite3, sys
db = sqlite3.connect("db", isolation_level=None)
db.execute("pragma journal_mode=wal"); db.execute("pragma synchronous=full")
db.execute("pragma wal_autocheckpoint=100")
db.execute("create table if not exists rows (place integer primary key, n integer, body blob, sha text)")
if os.environ["EXECUTION_RESUMED"] == "1":
    whole = db.execute("pragma integrity_check").fetchone()[0]
    print("whole", whole, db.execute("select max(n) from rows").fetchone()[0], flush=True)
    sys.exit(0 if whole == "ok" else 1)
n = 0
while True:
    n += 1
    print(n, flush=True)
    with open("log", "a") as log:
        log.write(f"{{n}}\\n")
    body = os.urandom(2000)
    sha = hashlib.sha256(body).hexdigest()
    db.execute("insert or replace into rows values (?, ?, ?, ?)", (n % {KEPT}, n, body, sha))
"""


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
        log, last = look(here.parts.workspaces.snapshot_files(snapshot.id))
        assert said - 1 <= log <= said and log - 1 <= last <= log
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


def lines_by(history: list[Event]) -> Callable[[int], int]:
    """How many lines it had said by an event's number."""
    said = [event for event in history if event.type == events.OUTPUT and event.data["stream"] == "stdout"]
    seqs = [event.seq for event in said]
    sums = list(accumulate(((event.body or b"").count(b"\n") for event in said), initial=0))
    return lambda seq: sums[bisect.bisect_right(seqs, seq)]


def look(files: Files) -> tuple[int, int]:
    """The last number in the log and in the database, every line and row checked; the database opened as a reader
    after a crash would."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("db", "db-wal", "log"):
            opened = files.open(name)
            try:
                (Path(folder) / name).write_bytes(opened.read(0, opened.stat.size_bytes + 1))
            finally:
                opened.close()
        db = sqlite3.connect(Path(folder) / "db")
        try:
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
            rows = db.execute("select n, body, sha from rows order by n").fetchall()
        finally:
            db.close()
        log = [int(line) for line in (Path(folder) / "log").read_text().split()]
    last = rows[-1][0]
    assert [n for n, _, _ in rows] == list(range(max(1, last - KEPT + 1), last + 1))
    assert all(hashlib.sha256(body).hexdigest() == sha for _, body, sha in rows)
    assert log == list(range(1, log[-1] + 1))
    return log[-1], last
