"""A writer that keeps a database and a log busy while it is snapshotted and forked: every copy is of one moment."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.execution import Execution, OutcomeKind, SnapshotPolicy
from orchestrator.snapshots import Origin, Snapshot
from orchestrator.workspace import Files
from tests.engine.stage import Stage, printed, stdout
from tests.engine.test_snapshots import cut

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]

#: Says n, writes n to the log, commits n: so each is at most one behind the one before. A fork looks and ends.
WRITER = """
import hashlib, os, sqlite3, sys
db = sqlite3.connect("db", isolation_level=None)
db.execute("pragma journal_mode=wal"); db.execute("pragma synchronous=normal")
db.execute("create table if not exists rows (n integer primary key, body blob, sha text)")
if os.environ["EXECUTION_RESUMED"] == "1":
    whole = db.execute("pragma integrity_check").fetchone()[0]
    print("whole", whole, db.execute("select count(*) from rows").fetchone()[0], flush=True)
    sys.exit(0 if whole == "ok" else 1)
n = 0
while True:
    n += 1
    print(n, flush=True)
    with open("log", "a") as log:
        log.write(f"{n}\\n")
    body = os.urandom(2000)
    db.execute("insert into rows values (?, ?, ?)", (n, body, hashlib.sha256(body).hexdigest()))
"""


@pytest.mark.parametrize(("snapshots", "forks"), [(20, 3), pytest.param(200, 50, marks=pytest.mark.full)])
async def test_every_copy_is_of_one_moment(here: Stage, snapshots: int, forks: int) -> None:
    here.work()
    never = SnapshotPolicy(at_end=False)
    command = ("python3", "-c", WRITER)
    asked = await here.submit(harness="command", command=command, snapshots=never)
    await here.saw(asked, printed("50\n"))
    taken: list[Snapshot] = []
    made: list[Execution] = []
    for n in range(snapshots):
        taken.append(await cut(here, asked))
        if len(made) < forks and n % max(snapshots // forks, 1) == 0:
            origin = Origin(asked.id, taken[-1].id, taken[-1].cut.seq)
            made.append(await here.submit(harness="command", command=command, snapshots=never, origin=origin))
    await here.cancel(asked, grace_s=0)
    await here.ended(asked)
    history = await here.history(asked)
    for snapshot in taken:
        said = len(stdout([event for event in history if event.seq <= snapshot.cut.seq]).splitlines())
        log, rows = look(here.parts.workspaces.snapshot_files(snapshot.id))
        assert log == list(range(1, len(log) + 1)) and rows == list(range(1, len(rows) + 1))
        assert said - 1 <= len(log) <= said and len(log) - 1 <= len(rows) <= len(log)
    for fork in made:
        record = await here.ended(fork)
        assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
        assert stdout(await here.history(fork)).startswith(b"whole ok ")
    assert sum(event.type == events.SNAPSHOT_CREATED for event in history) == snapshots


def look(files: Files) -> tuple[list[int], list[int]]:
    """The log and the database's rows, each row checked, of a database opened as a reader after a crash would."""
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
            rows = [n for (n,) in db.execute("select n from rows order by n")]
        finally:
            db.close()
        return [int(line) for line in (Path(folder) / "log").read_text().split()], rows
