"""Sleep, waking and forks in real containers, on each store: nothing runs while it sleeps, every message counts once,
what is forked works on and disturbs nobody, and nobody sleeps who works."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.client import Client
from orchestrator.client.nouns import Event
from orchestrator.client.sync import Execution
from tests.ledger import declare
from tests.place import Place, until
from tests.truth import WRITER, agree, lines_by, look

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(600)]

STATE, OUTPUT = "execution.state", "output"
#: Works for longer than it may be idle, then says so: by itself, and in a child.
WORKS = {
    "alone": "SECONDS=0; while [ $SECONDS -lt 4 ]; do :; done",
    "in-a-child": "python3 -c 'import time; end = time.process_time() + 4\nwhile time.process_time() < end: pass'",
}


@pytest.fixture(scope="module", params=["directory", "btrfs"])
def sleeper(request: pytest.FixtureRequest, sandbox_image: str) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    harnesses = declare(folder / "h")
    for kind, work in WORKS.items():
        script = f"echo up; {work}; echo done; read m".replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        (harnesses / f"{kind}.toml").write_text(
            f'argv = ["/bin/bash", "-c", "{script}"]\nstdin = "text"\noutput = "bytes"\nresumes = true\n'
        )
    asked = (f"image={sandbox_image}", "lease_s=15", f"harness_dir={harnesses}")
    made = Place(folder, settings=(*asked, f"workspace_store={request.param}", "pool_size_bytes=4294967296"))
    try:
        made.serve()
        yield made
    finally:
        made.close()


@pytest.fixture
def client(sleeper: Place) -> Iterator[Client]:
    with Client(sleeper.url, sleeper.token) as made:
        yield made


def begin(client: Client, **spec: Any) -> Execution:
    execution = client.submit(harness="ledger", task="keep the log", **spec)
    heard(execution, "up 1")
    return execution


def saw(execution: Execution, wanted: Callable[[Event], bool]) -> Event:
    """Follow it until such an event."""
    for event in execution.events():
        if wanted(event):
            return event
    raise AssertionError("it ended without")


def heard(execution: Execution, text: str) -> Event:
    return saw(execution, lambda event: event.type == OUTPUT and text.encode() in (event.body or b""))


def say(execution: Execution, text: str, answer: str) -> None:
    execution.send(text)
    heard(execution, answer)


def containers(execution: Execution) -> list[str]:
    """By the id that its sandbox's name holds."""
    command = ["docker", "ps", "-a", "--filter", f"name={execution.refresh().sandbox_id}", "--format", "{{.Names}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def shell(execution: Execution, script: str) -> str:
    done = execution.exec(["sh", "-c", script])
    assert done.exit_code == 0, done
    return str(done.stdout)


@pytest.mark.parametrize("cycles", [2, pytest.param(30, marks=pytest.mark.full)])
def test_the_counter_is_exact_over_sleeps(client: Client, cycles: int) -> None:
    execution = begin(client)
    for cycle in range(1, cycles + 1):
        assert containers(execution)
        asleep = execution.hibernate(hold_s=60)
        assert asleep.state == "HIBERNATED" and asleep.snapshot_id
        until(lambda: containers(execution) == [], "its container is removed, after it was said to sleep")
        say(execution, f"message {cycle}", f"got message {cycle} as {cycle}")
    execution.send("end")
    record = execution.wait(120)
    assert record.outcome is not None and record.outcome.kind == "SUCCEEDED"
    assert record.attempt == cycles + 1 and record.failures == 0
    log = execution.files.read("log").decode().split("\n")
    assert log == [*(f"message {cycle}" for cycle in range(1, cycles + 1)), ""]
    told = [event.type for event in execution.events()]
    assert told.count("message.accepted") == told.count("message.delivered") == cycles + 1


@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.full)])
def test_forks_have_files_and_state_and_disturb_nobody(sleeper: Place, client: Client, count: int) -> None:
    parent = begin(client, resources={"memory_bytes": 64 << 20})
    say(parent, "one", "got one as 1")
    point = parent.snapshot()
    say(parent, "two", "got two as 2")
    pids = "cat /state/starts | wc -l; pgrep -o bash"
    before = shell(parent, pids)
    now = parent.fork(count=count)
    (then,) = parent.fork(snapshot=point.id)
    for fork in now:
        say(fork, "three", "got three as 3")
        forked = fork.refresh().forked_from
        assert forked is not None and forked.execution_id == parent.id
        second = fork.history(limit=2).events[1]
        assert (second.type, second.data["from"]) == ("execution.forked", parent.id)
    say(then, "three", "got three as 2")
    assert then.refresh().forked_from.seq == point.cut.seq  # type: ignore[union-attr]
    # The other has neither stopped nor seen any of it.
    record = parent.refresh()
    assert (record.state, record.attempt) == ("RUNNING", 1)
    assert shell(parent, pids) == before
    say(parent, "four", "got four as 3")
    assert parent.files.read("log") == b"one\ntwo\nfour\n"
    drawn = json.loads(sleeper.ok("tree", "--json", then.id))
    assert drawn["root"] == parent.id and len(drawn["executions"]) == count + 2
    for fork in (*now, then):
        fork.delete(force=True)


def test_rewind_goes_on_under_the_name(client: Client) -> None:
    first = begin(client, name="again")
    say(first, "good", "got good as 1")
    good = first.snapshot()
    say(first, "bad", "got bad as 2")
    back = first.rewind(good.id)
    assert client.get("again").id == back.id
    assert first.refresh().outcome.kind == "CANCELLED"  # type: ignore[union-attr]
    say(back, "better", "got better as 2")
    assert back.files.read("log") == b"good\nbetter\n"
    assert first.files.read("log") == b"good\nbad\n"


def test_an_exec_wakes_and_runs_and_so_does_a_resume(client: Client) -> None:
    execution = begin(client)
    say(execution, "one", "got one as 1")
    assert execution.hibernate(hold_s=60).state == "HIBERNATED"
    assert execution.files.read("log") == b"one\n" and execution.refresh().state == "HIBERNATED", "looking wakes nobody"
    assert shell(execution, "cat /workspace/log") == "one\n"
    assert execution.refresh().state == "RUNNING"
    heard(execution, "up 2 of 2")
    assert execution.hibernate(hold_s=60).state == "HIBERNATED"
    execution.resume()
    heard(execution, "up 3 of 3")
    say(execution, "two", "got two as 2")


@pytest.mark.parametrize("kind", WORKS)
def test_what_works_never_sleeps(client: Client, kind: str) -> None:
    execution = client.submit(harness=kind, limits={"idle_timeout_s": 1.5})
    done = heard(execution, "done")
    asleep = saw(execution, lambda event: event.type == STATE and event.data["trigger"] == "idle")
    assert done.seq < asleep.seq


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.full)])
def test_every_cut_is_of_one_moment(client: Client, count: int) -> None:
    execution = client.submit(harness="command", command=["python3", "-c", WRITER], snapshots={"at_end": False})
    heard(execution, "50\n")
    taken = [execution.snapshot() for _ in range(count)]
    execution.cancel(grace_s=0)
    said_by = lines_by(list(execution.events()))
    moments = []
    for snapshot in taken:
        log, last = look(partial(execution.files.read, snapshot=snapshot.id))
        assert agree(said_by(snapshot.cut.seq), log, last)
        moments.append((log, last))
    assert moments == sorted(set(moments)), "it went on between"
