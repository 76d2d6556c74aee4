"""A whole server on a small disk that fills: first nothing new is begun, then the store stands; nothing acknowledged is
lost, and all of it is well again by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.place import Place, until
from tests.small_disks import MIB, SmallDisk, small_disk

pytestmark = pytest.mark.root
TALKER = "echo up; while read m; do echo got $m; done"


@pytest.fixture
def disk(short_dir: Path) -> Iterator[SmallDisk]:
    with small_disk(short_dir, size_bytes=96 * MIB) as made:
        yield made


@pytest.fixture
def place(disk: SmallDisk) -> Iterator[Place]:
    """Its workspaces, its data and its store on that disk; its programs' own files, too."""
    folder = disk.point / "p"
    folder.mkdir()
    made = Place(folder)
    made.settings = ("driver=scripted", "lease_s=2", "workspaces_low=24m", "data_low=24m", "store_low=24m")
    try:
        made.serve()
        yield made
    finally:
        disk.empty()
        made.close()


def logs(place: Place, ref: str) -> str:
    return str(place.carrel("logs", ref).stdout.decode())


def refused(place: Place) -> Any:
    """A submit that is not taken, once it is not."""
    return until(lambda: (done := place.carrel("run", "-d", "--", "true")).returncode != 0 and done, "it is refused")


@pytest.mark.full
def test_below_its_mark_and_full_and_well_again(place: Place, disk: SmallDisk) -> None:
    place.ok("run", "-d", "--name", "works", "--stdin", "text", "--", "bash", "-c", TALKER)
    until(lambda: "up" in logs(place, "works"), "it is up")

    disk.fill(leave_bytes=12 * MIB)
    said = refused(place).stderr.decode()
    assert "for want of room" in said and "_low" in said and "make room" in said
    place.ok("send", "works", "below")  # what runs goes on
    until(lambda: "got below" in logs(place, "works"), "it has heard")
    assert place.carrel("snapshot", "create", "works").returncode != 0
    shown = place.ok("stats")
    assert "no room, nothing new is begun" in shown

    disk.fill(leave_bytes=0)
    sent: list[str] = []
    while len(sent) < 2000:  # the store writes until its disk is full; then it ends rather than acknowledge
        done = place.carrel("send", "works", f"m{len(sent)}-" + "x" * 60_000)
        if done.returncode:
            break
        sent.append(f"m{len(sent)}-")
    assert done.returncode != 0

    disk.empty()
    until(lambda: place.carrel("send", "works", "after").returncode == 0, "the store is back")
    until(lambda: "got after" in logs(place, "works"), "it has heard")
    printed = logs(place, "works")
    assert [name for name in sent if f"got {name}" not in printed] == []
    assert place.carrel("run", "--", "echo", "new").stdout == b"new\n"
    record = json.loads(place.ok("inspect", "--json", "works"))
    assert (record["state"], record["attempt"], record["failures"]) == ("RUNNING", 1, 0)
