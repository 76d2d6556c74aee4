"""A program that keeps a database and a log busy, and what a copy of its files must look like: for tests of snapshots
on every engine and store."""

from __future__ import annotations

import bisect
import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

from orchestrator import events
from orchestrator.events import Event

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


def lines_by(history: Sequence[Event]) -> Callable[[int], int]:
    """How many lines it had said by an event's number."""
    said = [event for event in history if event.type == events.OUTPUT and event.data["stream"] == "stdout"]
    seqs = [event.seq for event in said]
    sums = list(accumulate(((event.body or b"").count(b"\n") for event in said), initial=0))
    return lambda seq: sums[bisect.bisect_right(seqs, seq)]


def look(read: Callable[[str], bytes]) -> tuple[int, int]:
    """The last number in the log and in the database, every line and row checked; the database opened as a reader
    after a crash would. `read`: a file of the copy."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("db", "db-wal"):
            (Path(folder) / name).write_bytes(read(name))
        db = sqlite3.connect(Path(folder) / "db")
        try:
            assert db.execute("pragma integrity_check").fetchone() == ("ok",)
            rows = db.execute("select n, body, sha from rows order by n").fetchall()
        finally:
            db.close()
    log = [int(line) for line in read("log").split()]
    last = int(rows[-1][0])
    assert [n for n, _, _ in rows] == list(range(max(1, last - KEPT + 1), last + 1))
    assert all(hashlib.sha256(body).hexdigest() == sha for _, body, sha in rows)
    assert log == list(range(1, log[-1] + 1))
    return log[-1], last


def agree(said: int, log: int, last: int) -> bool:
    """Each is at most one behind the one before: it says n, writes n to the log, commits n."""
    return said - 1 <= log <= said and log - 1 <= last <= log
