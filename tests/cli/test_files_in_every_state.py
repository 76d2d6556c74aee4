"""Every verb of files in every state of an execution, with api and worker as processes of their own; and artifacts and
prune from the command line of the same server."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.client import Client
from orchestrator.client.sync import Execution
from orchestrator.errors import Conflict
from tests.ledger import declare
from tests.place import Place

pytestmark = pytest.mark.root


@dataclass
class Apart(Place):
    """An api, and a worker when somebody asks for one."""

    verb: str = "api"

    def work(self) -> subprocess.Popen[bytes]:
        command = [*self.program, "worker"]
        for one in (f"installation={(self.folder / 'name').read_text()}", "log_level=info", *self.settings):
            command += ["--set", one]
        with (self.folder / "worker.log").open("ab") as log:
            worker = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        self.started.append(worker)
        return worker

    @property
    def client(self) -> Client:
        return Client(self.url, self.token)


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    given = ("driver=scripted", f"harness_dir={declare(folder / 'h')}", "sweep_interval_s=1", "lease_s=2")
    made = Apart(folder, settings=given)
    try:
        made.serve()
        yield made
    finally:
        ids = made.carrel("ps", "-aq").stdout.decode().split()
        if ids:  # while there is a worker that ends them
            made.carrel("rm", "-f", *ids)
        made.close()


def packed(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def look(one: Execution, expected: bytes) -> None:
    """Every verb that reads."""
    files = one.files
    assert files.read("kept/text") == expected
    assert files.stat("kept/text").size_bytes == len(expected)
    assert "kept" in [entry.path for entry in files.list("")]
    assert [entry.path for entry in files.list("kept", recursive=True)] == ["kept/text"]
    assert [entry.path for entry in files.search("tex")] == ["kept/text"]
    with tarfile.open(fileobj=io.BytesIO(b"".join(files.archive("kept")))) as archive:
        assert archive.getnames() == ["text"]
    assert b"".join(files.archive("kept", format="tar.zst")).startswith(b"\x28\xb5\x2f\xfd")


def change(one: Execution, expected: bytes) -> None:
    """Every verb that writes; then all is as it was."""
    files = one.files
    files.mkdir("made/deep")
    files.write("made/deep/a", b"alpha")
    files.move("made/deep/a", "made/b")
    files.unpack("made/more", packed("c", b"gamma"))
    assert (files.read("made/b"), files.read("made/more/c")) == (b"alpha", b"gamma")
    files.remove("made", recursive=True)
    assert [entry.path for entry in files.search("gamma")] == []
    look(one, expected)


def refused(one: Execution) -> None:
    """What cannot be written is said, by every verb."""
    files = one.files
    for write in (
        lambda: files.mkdir("x"),
        lambda: files.write("x", b"x"),
        lambda: files.move("kept/text", "y"),
        lambda: files.unpack("x", packed("c", b"")),
        lambda: files.remove("kept/text"),
    ):
        with pytest.raises(Conflict) as said:
            write()
        assert said.value.data["remedy"]


def printed(one: Execution, text: bytes) -> None:
    """Wait until it has: by its history, not by asking again."""
    assert any(text in (event.body or b"") for event in one.events())


def came_to(one: Execution, state: str) -> None:
    assert any(event.type == "execution.state" and event.data["to"] == state for event in one.events())


@pytest.mark.timeout(240)
def test_every_verb_in_every_state(apart: Apart) -> None:
    with apart.client as client:
        one = client.submit(harness="ledger", task="keep the log")
        assert one.refresh().state == "QUEUED"
        refused(one)
        with pytest.raises(Conflict, match="no workspace yet"):
            one.files.read("kept/text")

        worker = apart.work()
        printed(one, b"up 1")
        one.files.write("kept/text", b"one\n")
        change(one, b"one\n")
        first = one.snapshot().id

        one.pause()
        came_to(one, "PAUSED")
        one.files.write("kept/text", b"two\n")
        change(one, b"two\n")
        assert [(d.change, d.path) for d in one.files.diff(first) if "text" in d.path] == [("changed", "kept/text")]
        one.resume()

        worker.send_signal(signal.SIGSTOP)  # files do not need a worker
        change(one, b"two\n")
        worker.send_signal(signal.SIGCONT)

        one.hibernate()
        came_to(one, "HIBERNATED")
        asleep = one.refresh()
        change(one, b"two\n")
        slots = apart.folder / "d" / "slots"
        slot = slots / str(asleep.sandbox_id)
        shutil.move(slot, apart.folder / "aside")  # its workspace is gone: as its newest snapshot has it
        look(one, b"two\n")
        refused(one)
        assert one.files.read("kept/text", snapshot=first) == b"one\n"
        shutil.move(apart.folder / "aside", slot)

        worker.send_signal(signal.SIGSTOP)
        (fork,) = one.fork(snapshot=first)
        look(fork, b"one\n")  # it waits for a worker: what it will begin from
        refused(fork)
        worker.send_signal(signal.SIGCONT)
        printed(fork, b"up 1")
        change(fork, b"one\n")

        one.send("end")
        ended = one.wait()
        change(one, b"two\n")
        assert [item.id for part in client.prune(what=["workspaces"]) for item in part.pruned] == [one.id]
        assert not (slots / str(ended.sandbox_id)).exists()
        look(one, b"two\n")
        refused(one)
        fork.cancel(grace_s=0)
        fork.wait()


@pytest.mark.timeout(240)
def test_artifacts_and_prune(apart: Apart) -> None:
    if not any(process.poll() is None for process in apart.started):
        apart.work()
    say = """echo '{"type":"artifact","path":"/workspace/report"}'; echo text > report; mkfifo artifacts/pipe"""
    script = f"head -c 300000 /dev/urandom > artifacts/big; {say}; echo done"
    for name in ("p1", "p2"):
        apart.ok("run", "-d", "--name", name, "-l", "prune=yes", "--", "bash", "-c", script)
    apart.ok("run", "-d", "--name", "p3", "-l", "prune=yes", "--", "sleep", "1000")
    with apart.client as client:
        for name in ("p1", "p2"):
            client.execution(name).wait()
    listed = apart.carrel("artifacts", "ls", "p1")
    assert b"big" in listed.stdout and b"report" in listed.stdout and b"pipe was not kept" in listed.stderr
    before = {one["path"]: one for one in map(json.loads, apart.ok("artifacts", "ls", "--json", "p1").splitlines())}

    would = json.loads(apart.ok("prune", "--workspaces", "-l", "prune=yes", "--dry-run", "--json"))
    assert would["dry_run"] and len(would["pruned"]) == 2 and would["freed_bytes"] > 600_000
    went = apart.ok("prune", "--workspaces", "-l", "prune=yes", "--yes")
    assert went.count("workspace exe_") == 2 and went.splitlines()[-1].endswith("freed")
    again = {one["path"]: one for one in map(json.loads, apart.ok("artifacts", "ls", "--json", "p1").splitlines())}
    assert again == before
    out = apart.folder / "got"
    out.mkdir()
    apart.ok("artifacts", "get", "p1", "-o", str(out))
    assert hashlib.sha256((out / "big").read_bytes()).hexdigest() == before["big"]["sha256"]
    assert (out / "report").read_text() == "text\n"

    assert apart.ok("prune", "--older-than", "1h", "-l", "prune=yes", "--yes").splitlines() == ["0 bytes freed"]
    asked = apart.carrel("prune", "-l", "prune=yes")
    assert asked.returncode == 2 and b"--yes" in asked.stderr
    went = apart.ok("prune", "-l", "prune=yes", "--outcome", "succeeded", "--yes")
    assert went.count("execution exe_") == 2
    assert apart.carrel("inspect", "p1").returncode == 125
    assert apart.record("p3")["state"] == "RUNNING"
    assert not list((apart.folder / "d" / "shelf" / "content").glob("??/*"))
    apart.ok("kill", "p3")
