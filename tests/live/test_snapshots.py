"""Sleep, waking and forks in real containers: nothing runs while it sleeps, every message counts once, and what is
forked works on."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import Client
from tests.ledger import declare
from tests.place import Place, until

pytestmark = [pytest.mark.root, pytest.mark.docker]

CYCLES = 5


@pytest.fixture(scope="module")
def sleeper(sandbox_image: str) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    made = Place(folder, settings=(f"image={sandbox_image}", "lease_s=5", f"harness_dir={declare(folder / 'h')}"))
    try:
        made.serve()
        yield made
    finally:
        made.close()


def begin(client: Client, place: Place, name: str) -> None:
    client.submit(harness="ledger", task="keep the log", name=name)
    until(lambda: "up 1" in place.ok("logs", name), f"{name} began")


def say(client: Client, place: Place, name: str, text: str, heard: str) -> None:
    client.execution(name).send(text)
    until(lambda: heard in place.ok("logs", name), f"{name} heard {text!r}")


def containers(place: Place, id: str) -> list[str]:
    """Of this execution, by the id that its sandbox's name holds."""
    sandbox = place.record(id)["sandbox_id"]
    command = ["docker", "ps", "-a", "--filter", f"name={sandbox}", "--format", "{{.Names}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_counter_is_exact_over_sleeps(sleeper: Place) -> None:
    with Client(sleeper.url, sleeper.token) as client:
        begin(client, sleeper, "counter")
        execution = client.get("counter")
        for cycle in range(1, CYCLES + 1):
            assert containers(sleeper, "counter")
            asleep = execution.hibernate(hold_s=60)
            assert asleep.state == "HIBERNATED" and asleep.snapshot_id
            until(lambda: containers(sleeper, "counter") == [], "its container is removed, after it was said to sleep")
            say(client, sleeper, "counter", f"message {cycle}", f"got message {cycle} as {cycle}")
        execution.send("end")
        record = execution.wait(120)
        assert record.outcome is not None and record.outcome.kind == "SUCCEEDED"
        assert record.attempt == CYCLES + 1 and record.failures == 0
        log = execution.files.read("log").decode().split("\n")
        assert log == [*(f"message {cycle}" for cycle in range(1, CYCLES + 1)), ""]
        told = [event.type for event in execution.events()]
        assert told.count("message.accepted") == told.count("message.delivered") == CYCLES + 1


def test_a_fork_has_files_and_state_and_disturbs_nobody(sleeper: Place) -> None:
    with Client(sleeper.url, sleeper.token) as client:
        begin(client, sleeper, "parent")
        parent = client.get("parent")
        say(client, sleeper, "parent", "one", "got one as 1")
        point = parent.snapshot(name="point")
        say(client, sleeper, "parent", "two", "got two as 2")
        pid = parent.exec(["sh", "-c", "cat /state/starts | wc -l"]).stdout
        now = parent.fork(count=3, name="now")
        (then,) = parent.fork(snapshot="point", name="then")
        assert point.cut.seq < parent.refresh().tail
        for fork in now:
            name = fork.record.name if fork.record else ""
            say(client, sleeper, name, "three", "got three as 3")
            forked = fork.refresh().forked_from
            assert forked is not None and forked.execution_id == parent.id
            second = fork.history(limit=2).events[1]
            assert (second.type, second.data["from"]) == ("execution.forked", parent.id)
        say(client, sleeper, "then", "three", "got three as 2")
        assert then.refresh().forked_from.seq == point.cut.seq  # type: ignore[union-attr]
        # The other has neither stopped nor seen any of it.
        record = parent.refresh()
        assert (record.state, record.attempt) == ("RUNNING", 1)
        assert parent.exec(["sh", "-c", "cat /state/starts | wc -l"]).stdout == pid
        assert parent.files.read("log") == b"one\ntwo\n"
        drawn = json.loads(sleeper.ok("tree", "--json", "then"))
        assert drawn["root"] == parent.id and len(drawn["executions"]) == 5


def test_rewind_goes_on_under_the_name(sleeper: Place) -> None:
    with Client(sleeper.url, sleeper.token) as client:
        begin(client, sleeper, "again")
        first = client.get("again")
        say(client, sleeper, "again", "good", "got good as 1")
        good = first.snapshot()
        say(client, sleeper, "again", "bad", "got bad as 2")
        back = first.rewind(good.id)
        assert client.get("again").id == back.id
        assert first.refresh().outcome.kind == "CANCELLED"  # type: ignore[union-attr]
        say(client, sleeper, "again", "better", "got better as 2")
        assert back.files.read("log") == b"good\nbetter\n"
        assert first.files.read("log") == b"good\nbad\n"


def test_an_exec_wakes_and_runs(sleeper: Place) -> None:
    with Client(sleeper.url, sleeper.token) as client:
        begin(client, sleeper, "tapped")
        execution = client.get("tapped")
        say(client, sleeper, "tapped", "one", "got one as 1")
        assert execution.hibernate(hold_s=60).state == "HIBERNATED"
        done = execution.exec(["cat", "/workspace/log"])
        assert (done.exit_code, done.stdout) == (0, "one\n")
        assert execution.refresh().state == "RUNNING"
