"""`carrel backup` beside a server that works, `carrel restore` into an empty place, and both killed at every piece."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.stores import embedded
from tests.place import Place, until

pytestmark = pytest.mark.root
TALKER = "echo up; while read m; do echo got $m; echo $m >> log; done"


@pytest.fixture
def other() -> Iterator[Place]:
    """Another machine, as it were: the same installation's name, nothing in it; not served yet."""
    made = Place(Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp")))
    try:
        yield made
    finally:
        made.close()
        embedded.shutdown(made.folder / "d")
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
def busy(own_place: Place) -> Place:
    """One that has ended, with files, and one that works, with a snapshot."""
    place = own_place
    place.ok("run", "--name", "done", "--", "bash", "-c", "echo hello; echo kept > file; echo made > artifacts/made")
    place.ok("run", "-d", "--name", "works", "--stdin", "text", "--", "bash", "-c", TALKER)
    until(lambda: b"up" in place.carrel("logs", "works").stdout, "it is up")
    place.ok("snapshot", "create", "works", "--name", "point")
    place.ok("send", "works", "one")
    until(lambda: b"got one" in place.carrel("logs", "works").stdout, "it has heard")
    return place


def options(place: Place, like: Place) -> list[str]:
    return ["--set", "driver=scripted", "--set", f"installation={(like.folder / 'name').read_text()}"]


def backed_up(place: Place, *more: str) -> dict[str, Any]:
    file = str(place.folder / "backup")
    told: dict[str, Any] = json.loads(place.ok("backup", "-o", file, "--json", *options(place, place), *more))
    return told


def unmeasured(snapshot: dict[str, Any]) -> dict[str, Any]:
    """Without what a worker computes in its own time."""
    return {name: value for name, value in snapshot.items() if name not in ("digest", "size_bytes", "files")}


def shown(place: Place, ref: str) -> tuple[Any, ...]:
    return (
        {name: value for name, value in place.record(ref).items() if name != "disk"},
        place.events(ref),
        place.ok("logs", ref),
        [unmeasured(json.loads(line)) for line in place.ok("snapshot", "ls", ref, "--json").splitlines()],
    )


def served_as(place: Place, like: Place) -> Place:
    """Under the name of the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place.port = free.getsockname()[1]
    (place.folder / "name").write_text((like.folder / "name").read_text())
    place.serve()
    return place


def test_there_and_back(busy: Place, other: Place) -> None:
    before = shown(busy, "done")
    told = backed_up(busy)
    assert told["executions"] == 2 and told["artifacts"] == 1 and told["snapshot_files"] == told["snapshots"] >= 2
    busy.ok("send", "works", "two")  # it works on
    until(lambda: b"got two" in busy.carrel("logs", "works").stdout, "it has heard")
    file = busy.folder / "backup"
    assert f"backup {told['chain'][:12]}".encode() in busy.carrel("backup", "--verify", str(file)).stderr
    assert busy.carrel("backup", "--verify", "-", stdin=file.read_bytes()).returncode == 0
    done = other.carrel("restore", str(file), "--json", *options(other, busy))
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert (loaded["finished"], len(loaded["lost"]), loaded["resumes"]) == (1, 1, [])  # bash does not resume
    served_as(other, busy)
    assert shown(other, "done") == before
    assert other.ok("cp", "done:file", "-") == "kept\n"
    assert other.ok("artifacts", "get", "done", "-o", "-") == "made\n"
    lost = other.record("works")
    assert lost["outcome"]["kind"] == "LOST" and "restored from a backup" in lost["outcome"]["message"]
    assert "got one" in other.ok("logs", "works") and "got two" not in other.ok("logs", "works")
    fork = other.ok("fork", "works", "--snapshot", "point", "--name", "again").split()[0]
    assert other.record(fork)["forked_from"]["execution_id"] == lost["id"]
    again = other.carrel("restore", str(file), *options(other, busy))
    assert again.returncode == 125
    assert b"stop every" in again.stderr or b"not empty" in again.stderr or b"sandboxes" in again.stderr


def killed_at(place: Place, piece: int, *arguments: str) -> None:
    """Let it say so many pieces, then SIGKILL."""
    started = place.start(*arguments, "--progress")
    until(lambda: started.err.count(b"carrel: ") >= piece or started.process.poll() is not None, f"{piece} pieces")
    started.press(signal.SIGKILL)
    started.code()


def test_a_killed_backup_leaves_no_file_and_the_next_is_whole(busy: Place) -> None:
    file = busy.folder / "backup"
    for piece in (0, 1, 2):
        killed_at(busy, piece, "backup", "-o", str(file), *options(busy, busy))
        assert not file.exists() or busy.carrel("backup", "--verify", str(file)).returncode == 0
        file.unlink(missing_ok=True)
    backed_up(busy)
    assert [each.name for each in busy.folder.iterdir() if ".part-" in each.name] == []
    assert busy.carrel("backup", "--verify", str(file)).returncode == 0


@pytest.mark.full
def test_a_killed_restore_is_gone_over_again(busy: Place, other: Place) -> None:
    told = backed_up(busy)
    before = shown(busy, "done")
    file = str(busy.folder / "backup")
    for piece in range(1, 8):
        killed_at(other, piece, "restore", file, *options(other, busy))
    serving = other.start("serve", "--port", "0", *options(other, busy))
    until(lambda: b"the api listens" in serving.err or serving.process.poll() is not None, "it serves, or does not")
    if serving.process.poll() is None:  # the last one came to its end; or none to its beginning
        serving.press(signal.SIGTERM)
        assert serving.code() == 0
    else:
        assert (serving.code(), b"being restored" in serving.err) == (2, True)
    done = other.carrel("restore", file, "--json", *options(other, busy))
    if done.returncode:
        assert b"not empty" in done.stderr
    else:
        assert json.loads(done.stdout)["executions"] == told["executions"]
    served_as(other, busy)
    assert shown(other, "done") == before
    assert other.ok("cp", "done:file", "-") == "kept\n"


def test_stdin_and_stdout(busy: Place) -> None:
    piped = busy.carrel("backup", "-o", "-", *options(busy, busy))
    assert piped.returncode == 0, piped.stderr
    assert busy.carrel("backup", "--verify", "-", stdin=piped.stdout).returncode == 0
    refused = busy.carrel("restore", "-", *options(busy, busy))
    assert refused.returncode == 2 and b"give a file" in refused.stderr
    cut = busy.carrel("backup", "--verify", "-", stdin=piped.stdout[: len(piped.stdout) // 2])
    assert cut.returncode == 125 and b"the backup is damaged" in cut.stderr
