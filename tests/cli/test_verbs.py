"""The other verbs, each as a process of its own against a real server."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest

from tests.place import Place, until

pytestmark = pytest.mark.root


def watchers(place: Place) -> float:
    """How many follow a history now."""
    asked = urllib.request.Request(f"{place.url}/metrics", headers={"Authorization": f"Bearer {place.token}"})
    with urllib.request.urlopen(asked) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("carrel_viewers{"))


def test_ps(place: Place) -> None:
    place.ok("run", "--name", "ps-done", "--", "true")
    place.ok("run", "-d", "--name", "ps-lives", "--", "sleep", "600")
    until(lambda: "RUNNING" in place.ok("ps", "--name", "ps-lives"), "it runs")
    living = place.ok("ps")
    assert "ps-lives" in living and "ps-done" not in living
    row = next(line for line in place.ok("ps", "-a").splitlines() if "ps-done" in line)
    assert "SUCCEEDED" in row and row.endswith("true")
    assert [json.loads(line)["name"] for line in place.ok("ps", "--json", "--name", "ps-done", "-a").splitlines()] == [
        "ps-done"
    ]
    place.ok("kill", "ps-lives")
    assert place.carrel("ps", "--state", "asleep").returncode == 125


def test_logs_last_lines_streams_and_since(place: Place) -> None:
    script = "for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.1; done"
    place.carrel("run", "--name", "logs", "--", "bash", "-c", script)
    done = place.carrel("logs", "logs")
    assert (done.stdout, done.stderr) == (b"out 1\nout 2\nout 3\n", b"err 1\nerr 2\nerr 3\n")
    assert place.ok("logs", "-n", "2", "--stream", "stdout", "logs") == "out 2\nout 3\n"
    assert place.ok("logs", "-n", "0", "logs") == ""
    assert place.ok("logs", "-f", "-n", "1", "--stream", "stdout", "logs") == "out 3\n"
    assert place.ok("logs", "--since", "1h", "--stream", "stdout", "logs") == "out 1\nout 2\nout 3\n"
    assert place.ok("logs", "--since", "2100-01-01T00:00:00Z", "logs") == ""
    said = [json.loads(line) for line in place.ok("logs", "--json", "--stream", "stderr", "logs").splitlines()]
    assert "".join(event["data"]["data"] for event in said) == "err 1\nerr 2\nerr 3\n"
    assert place.carrel("logs", "--json", "-n", "1", "logs").returncode == 2


def test_logs_follow_from_now(place: Place) -> None:
    place.ok("run", "-d", "--name", "follow", "--", "bash", "-c", "echo before; read x; echo after $x")
    until(lambda: place.ok("logs", "follow") == "before\n", "it began")
    until(lambda: watchers(place) == 0, "nobody else does")
    logs = place.start("logs", "-f", "-n", "0", "follow")
    whole = place.start("logs", "-f", "follow")
    whole.saw(b"before\n")
    until(lambda: watchers(place) == 2, "both follow")
    place.ok("send", "follow", "that")
    assert (logs.code(), whole.code()) == (0, 0)
    assert whole.out == b"before\nafter that\n"
    assert logs.out == b"after that\n"


def test_ctrl_c_on_a_follower_only_leaves(place: Place) -> None:
    place.ok("run", "-d", "--name", "leave", "--", "bash", "-c", "echo ready; exec sleep 600")
    logs = place.start("logs", "-f", "leave")
    logs.saw(b"ready")
    logs.press()
    assert logs.code() == 130
    assert place.record("leave")["state"] == "RUNNING"
    place.ok("kill", "leave")


def test_events(place: Place) -> None:
    place.ok("run", "--name", "events", "--", "echo", "hi")
    events = place.events("events")
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "execution.submitted" and events[-1]["type"] == "execution.finished"
    assert [event["data"] for event in events if event["type"] == "output"] == [{"stream": "stdout", "data": "hi\n"}]
    after = place.ok("events", "--json", "--after", str(len(events) - 2), "events").splitlines()
    assert [json.loads(line)["seq"] for line in after] == [len(events) - 1, len(events)]
    assert len(place.ok("events", "-n", "3", "events").splitlines()) == 3
    assert place.ok("events", "-f", "--type", "output", "events").count("stdout: hi") == 1
    beyond = place.carrel("events", "--after", "99999", "events")
    assert beyond.returncode == 125


def test_send_once_per_id_and_interrupt(place: Place) -> None:
    script = (
        "trap 'echo interrupted' INT; echo ready; while :; do read -r x && echo got $x && [ $x = end ] && exit; done"
    )
    place.ok("run", "-d", "--name", "send", "--", "bash", "-c", script)
    until(lambda: "ready" in place.ok("logs", "send"), "it listens")
    first = json.loads(place.ok("send", "--json", "--id", "m1", "send", "hello"))
    again = json.loads(place.ok("send", "--json", "--id", "m1", "send", "hello"))
    assert (first["n"], first["repeated"], again["n"], again["repeated"]) == (1, False, 1, True)
    place.ok("send", "--interrupt", "send")
    until(lambda: "interrupted" in place.ok("logs", "send"), "it was interrupted")
    place.ok("send", "send", "-", stdin=b"from stdin\n")
    place.ok("send", "send", "end")
    place.ok("wait", "send")
    out = place.ok("logs", "--stream", "stdout", "send")
    assert out.count("got hello") == 1 and "got from stdin\n" in out and out.endswith("got end\n")
    late = place.carrel("send", "send", "too late")
    assert late.returncode == 125 and "→".encode() in late.stderr


def test_exec(place: Place) -> None:
    place.ok("run", "-d", "--name", "exec", "--", "sleep", "600")
    until(lambda: place.record("exec")["state"] == "RUNNING", "it runs")
    done = place.carrel("exec", "exec", "--", "bash", "-c", r"printf 'o\xff'; printf e >&2; exit 5")
    assert (done.stdout, done.stderr, done.returncode) == (b"o\xff", b"e", 5)
    assert place.ok("exec", "-w", "/tmp", "-e", "A=1", "exec", "bash", "-c", "echo $PWD $A") == "/tmp 1\n"
    assert place.ok("exec", "-i", "exec", "--", "cat", stdin=b"in\x00put") == "in\x00put"
    shape = json.loads(place.ok("exec", "--json", "exec", "--", "echo", "hi"))
    assert (shape["stdout"], shape["exit_code"]) == ("hi\n", 0)
    assert place.carrel("exec", "--timeout", "1s", "exec", "--", "sleep", "60").returncode == 124
    assert place.carrel("exec", "exec", "--", "no-such-program").returncode == 127
    place.ok("kill", "exec")
    assert place.carrel("exec", "exec", "--", "true").returncode == 125


def test_cp_both_ways(place: Place, tmp_path: Path) -> None:
    place.ok(
        "run", "-d", "--name", "cp", "--", "bash", "-c", "mkdir -p d/e; echo x > d/e/f; ln -s /etc d/out; sleep 600"
    )
    until(lambda: place.carrel("cp", "cp:d/e/f", "-").stdout == b"x\n", "the file is there")
    place.ok("cp", "cp:d", str(tmp_path))
    assert (tmp_path / "d" / "e" / "f").read_text() == "x\n"
    assert not (tmp_path / "d" / "out").exists()
    place.ok("cp", "-", "cp:new/notes", stdin=b"n\xff")
    assert place.ok("exec", "cp", "--", "bash", "-c", "stat -c %u new/notes; od -An -tx1 new/notes") == "1000\n 6e ff\n"
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "tool").write_text("#!/bin/sh\necho run\n")
    (tmp_path / "up" / "tool").chmod(0o755)
    place.ok("cp", str(tmp_path / "up"), "cp:d")
    assert place.ok("exec", "cp", "--", "./d/up/tool") == "run\n"
    missing = place.carrel("cp", "cp:nothing", str(tmp_path))
    assert missing.returncode == 125 and missing.stdout == b""
    place.ok("kill", "cp")


def test_artifacts(place: Place, tmp_path: Path) -> None:
    script = "mkdir -p $ARTIFACTS_DIR/sub; echo one > $ARTIFACTS_DIR/a.txt; printf '\\xff' > $ARTIFACTS_DIR/sub/b.bin"
    place.ok("run", "--name", "art", "--", "bash", "-c", script)
    assert sorted(json.loads(line)["path"] for line in place.ok("artifacts", "ls", "--json", "art").splitlines()) == [
        "a.txt",
        "sub/b.bin",
    ]
    place.ok("artifacts", "get", "-o", str(tmp_path / "all"), "art")
    assert (tmp_path / "all" / "sub" / "b.bin").read_bytes() == b"\xff"
    assert place.ok("artifacts", "get", "-o", "-", "art", "a.txt") == "one\n"


def test_wait_says_and_exits_as_it_did(place: Place) -> None:
    place.ok("run", "-d", "--name", "wait", "--", "bash", "-c", "read x; exit 6")
    assert place.carrel("wait", "--timeout", "300ms", "wait").returncode == 124
    waiting = place.start("wait", "wait")
    place.ok("send", "wait", "x")
    assert waiting.code() == 6
    assert waiting.out == b"FAILED exit 6\n"


def test_stop_kill_rm(place: Place) -> None:
    place.ok(
        "run",
        "-d",
        "--name",
        "stop",
        "--",
        "bash",
        "-c",
        "trap 'exit 8' TERM; echo ready; while :; do sleep 0.05; done",
    )
    until(lambda: "ready" in place.ok("logs", "stop"), "it runs")
    assert place.carrel("rm", "stop").returncode == 125
    assert place.ok("stop", "stop") == "stop\n"
    assert place.record("stop")["outcome"] == {
        **place.record("stop")["outcome"], "kind": "CANCELLED", "exit_code": 8,
    }  # fmt: skip
    assert place.ok("stop", "stop") == "stop\n"  # twice is no error
    place.ok(
        "run", "-d", "--name", "kill", "--", "bash", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    )
    until(lambda: "ready" in place.ok("logs", "kill"), "it runs")
    assert place.ok("kill", "kill") == "kill\n"
    assert place.record("kill")["outcome"]["signal"] == 9
    assert place.ok("rm", "stop", "kill") == "stop\nkill\n"
    assert place.carrel("rm", "stop").returncode == 125
    assert place.ok("rm", "-f", "stop") == ""


def test_pause_and_resume(place: Place) -> None:
    script = "while :; do date +%s%N > tick; sleep 0.02; done"
    place.ok("run", "-d", "--name", "pause", "--", "bash", "-c", script)
    until(lambda: place.carrel("cp", "pause:tick", "-").stdout, "it ticks")
    done = place.carrel("pause", "pause")
    if done.returncode == 125:
        assert b"pause" in done.stderr  # no unified cgroups on this machine: said, with a remedy
        assert "→".encode() in done.stderr
        place.ok("kill", "pause")
        return
    until(lambda: place.record("pause")["state"] == "PAUSED", "it is paused")
    refused = place.carrel("exec", "pause", "--", "true")
    assert refused.returncode == 125 and b"resume it first" in refused.stderr
    frozen = place.ok("cp", "pause:tick", "-")
    time.sleep(0.2)
    assert place.ok("cp", "pause:tick", "-") == frozen
    place.ok("resume", "pause")
    until(lambda: place.ok("cp", "pause:tick", "-") != frozen, "it ticks again")
    place.ok("kill", "pause")


def test_stats_and_config(place: Place) -> None:
    place.ok("run", "-l", "statistics=yes", "--", "true")
    shape = json.loads(place.ok("stats", "--json", "--by", "label:statistics"))
    assert [group["by_outcome"] for group in shape["groups"] if group["group"] == "yes"] == [{"SUCCEEDED": 1}]
    table = place.ok("stats")
    assert "SUCCEEDED=" in table and "IN DOUBT" in table
    config = json.loads(place.ok("config", "--json"))
    assert config["settings"]["data_dir"] == {"value": str(place.folder / "d"), "origin": "$CARREL_DATA_DIR"}
    assert config["client"] == {"url": place.url, "origin": "--url or CARREL_URL", "token": True}
    assert place.token not in place.ok("config")


def test_login_tries_before_it_keeps(place: Place) -> None:
    bad = place.carrel("login", place.url, "--name", "bad", stdin=b"carrel_nonsense\n")
    assert bad.returncode == 125 and not (place.folder / "home" / "carrel" / "profiles.toml").exists()
    place.ok("login", place.url, "--name", "good", stdin=place.token.encode() + b"\n")
    other = {"CARREL_URL": "", "CARREL_DATA_DIR": str(place.folder / "nothing")}
    assert place.carrel("--profile", "good", "ps", env=other).returncode == 0
    assert place.carrel("ps", env=other).returncode == 0
    (place.folder / "home" / "carrel" / "profiles.toml").unlink()


@pytest.mark.parametrize("verb", ["inspect", "logs", "events", "wait", "stop", "kill", "rm", "pause", "resume"])
def test_what_is_not_there(place: Place, verb: str) -> None:
    done = place.carrel(verb, "nobody-has-this-name")
    assert done.returncode == 125
    assert b"nobody-has-this-name" in done.stderr and done.stdout == b""


def test_names_are_completed(place: Place) -> None:
    place.ok("run", "--name", "completed-name", "--", "true")
    asked = {"COMP_WORDS": "carrel logs comp", "COMP_CWORD": "2", "_CARREL_COMPLETE": "complete_bash"}
    assert place.carrel(env=asked).stdout.split() == [b"completed-name"]
    away = {**asked, "CARREL_URL": "http://127.0.0.1:9"}
    assert place.carrel(env=away).stdout.split() == []
