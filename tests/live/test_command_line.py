"""What only a real engine can show of the command line: limits that change, memory that ends, an image that is not
there."""

from __future__ import annotations

import json

import pytest

from tests.place import Place, until

pytestmark = [pytest.mark.docker, pytest.mark.root]


def test_update_is_measured_in_the_cgroup(live: Place) -> None:
    live.ok("run", "-d", "--name", "update", "--cpus", "1", "-m", "256m", "--", "sleep", "600")
    until(lambda: live.record("update")["state"] == "RUNNING", "it runs")
    said = live.ok("update", "--cpus", "0.5", "-m", "512m", "update")
    assert said == "cpus 0.5 · memory 512m · pids 512\n"
    shape = json.loads(live.ok("update", "--json", "-m", "300m", "update"))
    assert shape["resources"]["memory_bytes"] == 300 << 20
    receipts = [event["data"] for event in live.events("update") if event["type"] == "sandbox.resized"]
    assert [one["result"] for one in receipts] == ["applied", "applied"]
    assert receipts[-1]["measured"]["memory_bytes"] == 300 << 20
    too_much = live.carrel("update", "--cpus", "1000", "update")
    assert too_much.returncode == 125 and b"cpus" in too_much.stderr
    live.ok("kill", "update")


def test_out_of_memory_is_137_and_says_what_to_do(live: Place) -> None:
    done = live.carrel("run", "-m", "64m", "--", "python3", "-c", "x = b'a' * (300 << 20)")
    assert done.returncode == 137
    assert b"-m" in done.stderr and b"oom" in done.stderr


def test_an_image_that_is_not_there_is_ours(live: Place) -> None:
    done = live.carrel("run", "--image", "carrel-no-such-image:1", "--", "true")
    assert done.returncode == 125
    assert b"image_missing" in done.stderr


def test_who_and_where_it_is(live: Place) -> None:
    out = live.ok("run", "--", "bash", "-c", "id -u; [ . -ef /workspace ] && echo here; grep -c eth /proc/net/dev; :")
    assert out == "1000\nhere\n0\n"


def test_paused_and_resumed(live: Place) -> None:
    live.ok("run", "-d", "--name", "pause", "--", "bash", "-c", "while :; do date +%s%N >> ticks; sleep 0.02; done")
    until(lambda: live.carrel("cp", "pause:ticks", "-").stdout, "it ticks")
    live.ok("pause", "pause")
    until(lambda: live.record("pause")["state"] == "PAUSED", "it is paused")
    frozen = live.ok("cp", "pause:ticks", "-")
    assert live.ok("cp", "pause:ticks", "-") == frozen
    live.ok("resume", "pause")
    until(lambda: live.ok("cp", "pause:ticks", "-") != frozen, "it ticks again")
    live.ok("kill", "pause")
