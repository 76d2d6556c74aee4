"""Snapshots, sleep, forks, rewind and the tree from the command line, on real boxes."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger import declare
from tests.place import Place, until

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def sleeper() -> Iterator[Place]:
    """A server with a harness that goes on from its files."""
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    made = Place(folder, settings=("driver=scripted", f"harness_dir={declare(folder / 'h')}"))
    try:
        made.serve()
        yield made
    finally:
        made.close()


def begin(place: Place, name: str, *more: str) -> None:
    place.ok("run", "-d", "--harness", "ledger", "--name", name, *more, "keep the log")
    until(lambda: "up 1" in place.ok("logs", name), "it began")


def say(place: Place, name: str, text: str, heard: str) -> None:
    place.ok("send", name, text)
    until(lambda: heard in place.ok("logs", name), f"{name} heard it")


def test_create_ls_inspect_label_rm(sleeper: Place) -> None:
    begin(sleeper, "snaps")
    first = sleeper.ok("snapshot", "create", "snaps", "--name", "first", "-l", "k=v").strip()
    second = json.loads(sleeper.ok("snapshot", "create", "snaps", "--json"))
    assert first.startswith("snp_") and second["parent"] == first and second["why"] == "asked"
    assert sleeper.ok("snapshot", "ls", "-q", "snaps").split() == [second["id"], first]
    listed = sleeper.ok("snapshot", "ls", "snaps").splitlines()
    assert listed[0].split() == ["ID", "NAME", "WHY", "AGE", "SEQ", "SIZE"] and "first" in listed[2]
    assert any(line.endswith(second["execution_id"]) for line in sleeper.ok("snapshot", "ls").splitlines())
    assert json.loads(sleeper.ok("snapshot", "inspect", "first"))["labels"] == {"k": "v"}
    sleeper.ok("snapshot", "label", "first", "--name", "renamed")
    assert sleeper.ok("snapshot", "rm", "renamed") == "renamed\n"
    gone = sleeper.carrel("snapshot", "inspect", first)
    assert gone.returncode == 125 and b"no snapshot" in gone.stderr
    assert sleeper.carrel("snapshot", "label", second["id"]).returncode == 2
    needed = sleeper.carrel("snapshot", "rm", second["id"])
    assert needed.returncode == 125 and "→" in needed.stderr.decode()
    sleeper.ok("kill", "snaps")


def test_hibernate_and_each_way_to_wake(sleeper: Place) -> None:
    begin(sleeper, "naps")
    say(sleeper, "naps", "one", "got one as 1")
    assert sleeper.ok("hibernate", "naps") == "naps\n"
    row = next(line for line in sleeper.ok("ps").splitlines() if "naps" in line)
    assert "HIBERNATED" in row
    assert sleeper.ok("hibernate", "naps") == "naps\n"  # twice is once
    say(sleeper, "naps", "two", "got two as 2")
    sleeper.ok("hibernate", "naps")
    assert sleeper.ok("resume", "naps") == "naps\n"
    until(lambda: "up 3 of 3" in sleeper.ok("logs", "naps"), "it woke")
    sleeper.ok("hibernate", "naps")
    assert sleeper.ok("exec", "naps", "--", "wc", "-l", "log").split()[0] == "2"
    record = sleeper.record("naps")
    assert (record["state"], record["attempt"]) == ("RUNNING", 4)
    assert record["disk"]["used_bytes"] > 0
    sleeper.ok("send", "naps", "end")
    assert sleeper.carrel("wait", "naps").returncode == 0
    ended = sleeper.carrel("hibernate", "naps")
    assert ended.returncode == 125 and b"FINISHED" in ended.stderr


def test_what_begins_anew_is_not_put_to_sleep(sleeper: Place) -> None:
    sleeper.ok("run", "-d", "--name", "anew", "--", "sleep", "600")
    until(lambda: sleeper.record("anew")["state"] == "RUNNING", "it runs")
    refused = sleeper.carrel("hibernate", "anew")
    assert refused.returncode == 125 and "begins anew" in refused.stderr.decode() and "pause" in refused.stderr.decode()
    sleeper.ok("kill", "anew")


def test_fork_rewind_tree(sleeper: Place) -> None:
    begin(sleeper, "work", "-l", "a=1")
    say(sleeper, "work", "one", "got one as 1")
    early = sleeper.ok("snapshot", "create", "work", "--name", "early").strip()
    say(sleeper, "work", "two", "got two as 2")
    forks = sleeper.ok("fork", "work", "-n", "2", "--name", "try", "-l", "b=2").split()
    old = sleeper.ok("fork", "work", "--snapshot", "early", "--name", "old", "three").strip()
    assert len(forks) == 2 and sleeper.record("work")["state"] == "RUNNING"
    # The task is said to what goes on with its work.
    until(lambda: "got three as 2" in sleeper.ok("logs", "old"), "it began with one line, and heard the task")
    for name in ("try-1", "try-2"):
        say(sleeper, name, "four", "got four as 3")
    assert sleeper.record("try-1")["labels"] == {"a": "1", "b": "2"}
    assert sleeper.record("old")["forked_from"]["snapshot_id"] == early
    say(sleeper, "work", "five", "got five as 3")  # nobody has touched its files
    before = sleeper.record("work")["id"]
    back = sleeper.ok("rewind", "work", "early").strip()
    assert back not in (before, old) and sleeper.record("work")["id"] == back
    say(sleeper, "work", "six", "got six as 2")
    assert sleeper.record(before)["outcome"]["kind"] == "CANCELLED"
    drawn = sleeper.ok("tree", "work")
    assert drawn.splitlines()[0].startswith(before)
    for text in (early, f"* {back}", old, *forks, "early"):
        assert text in drawn, drawn
    whole = json.loads(sleeper.ok("tree", "--json", old))
    assert whole["root"] == before and len(whole["executions"]) == 5
    sleeper.ok("rm", "-f", *forks, old, back)


def test_export_and_a_run_from_it(sleeper: Place, tmp_path: Path) -> None:
    begin(sleeper, "away")
    say(sleeper, "away", "one", "got one as 1")
    taken = sleeper.ok("snapshot", "create", "away").strip()
    file = tmp_path / "away.tar.zst"
    assert sleeper.ok("snapshot", "export", taken, "-o", str(file)) == f"{file}\n"
    assert sleeper.carrel("snapshot", "export", taken, "-o", "-").stdout == file.read_bytes()
    listed = subprocess.run(["tar", "-tf", file], check=True, capture_output=True, text=True).stdout.split()
    assert {"workspace/log", "state/starts"} <= set(listed)
    begin_again = ("run", "-d", "--harness", "ledger", "--name", "back", "--from-archive", str(file), "go on")
    sleeper.ok(*begin_again)
    until(lambda: "up 1 of 2" in sleeper.ok("logs", "back"), "its state is the other's")
    say(sleeper, "back", "two", "got two as 2")
    sleeper.ok("kill", "away", "back")
    file.write_bytes(file.read_bytes()[:100])
    cut = sleeper.carrel("run", "--harness", "ledger", "--from-archive", str(file), "go on")
    assert cut.returncode != 0 and b"no whole tar.zst" in cut.stderr, cut.stderr
    both = sleeper.carrel("run", "--from-archive", str(file), "--upload", str(file), "x")
    assert both.returncode == 2 and b"--upload" in both.stderr


def test_refusals_say_what_to_do(sleeper: Place) -> None:
    begin(sleeper, "lone")
    for words, code, said in (
        (("fork", "lone", "--snapshot", "nothing"), 125, "no snapshot"),
        (("fork", "lone", "-n", "0"), 2, "--count"),
        (("fork", "lone", "--name", "a b"), 125, "name"),
        (("fork", "nobody"), 125, "nobody"),
        (("rewind", "lone", "nothing"), 125, "no snapshot"),
        (("snapshot", "create", "lone", "--name", "snp_x"), 125, "name"),
        (("fork", "lone", ""), 2, "empty"),
    ):
        done = sleeper.carrel(*words)
        assert done.returncode == code and said in done.stderr.decode(), (words, done.stderr)
    sleeper.ok("kill", "lone")


def test_idleness_puts_it_to_sleep(sleeper: Place) -> None:
    sleeper.ok("run", "-d", "--harness", "ledger", "--name", "idle", "--idle-timeout", "1s", "keep the log")
    until(lambda: sleeper.record("idle")["state"] == "HIBERNATED", "it fell asleep by itself")
    sleeper.ok("send", "idle", "end")
    assert sleeper.carrel("wait", "idle").returncode == 0


def test_snapshots_by_themselves(sleeper: Place) -> None:
    begin(sleeper, "often", "--snapshot-every", "1s")
    until(lambda: len(sleeper.ok("snapshot", "ls", "-q", "often").split()) >= 2, "two were taken")
    assert "periodic" in sleeper.ok("snapshot", "ls", "often")
    sleeper.ok("kill", "often")
