"""Marks of room: what is short, and how it is said. A mark is what people write in the settings."""

from __future__ import annotations

import pytest

from orchestrator.configuration import load
from orchestrator.errors import BadInput
from orchestrator.room import Mark, Place, Room, no_room, shortage

GIB = 1 << 30
NOWHERE = {"CARREL_CONFIG": "/dev/null"}


@pytest.mark.parametrize(
    ("written", "total_bytes", "least_bytes"),
    [("256m", GIB, 256 << 20), ("5%", GIB, GIB // 20), ("256m,5%", GIB, GIB // 20), ("256m,5%", 100 * GIB, 256 << 20)],
)
def test_a_mark_as_written(written: str, total_bytes: int, least_bytes: int) -> None:
    mark = load({"data_low": written}, environment=NOWHERE).marks[Place.DATA]
    assert mark.least_bytes(total_bytes) == least_bytes
    assert str(mark) == written


@pytest.mark.parametrize("written", ["", "5", "5%,5%", "1m,2m", "95%", "-1%", "1m,5%,1m", "x%", "nan%"])
def test_what_is_none(written: str) -> None:
    if written == "5":  # bytes
        assert load({"store_low": written}, environment=NOWHERE).store_low == Mark(5)
        return
    with pytest.raises(BadInput, match="store_low"):
        load({"store_low": written}, environment=NOWHERE)


def test_zero_is_none() -> None:
    assert not Room(Place.DATA, 0, GIB, Mark().least_bytes(GIB)).short


def test_short_of_bytes_or_of_names() -> None:
    assert Room(Place.DATA, 99, GIB, 100).short
    assert not Room(Place.DATA, 100, GIB, 100).short
    names = Room(Place.DATA, GIB, GIB, 100, free_names=10)
    assert names.short
    assert str(names) == "data: room for 10 more files, new work needs 1024"


def test_what_is_said() -> None:
    rooms = [Room(Place.WORKSPACES, 12 << 20, 100 << 20, 25 << 20), Room(Place.DATA, GIB, GIB, 1)]
    why = "workspaces: 12 MiB free of 100 MiB, new work needs 25 MiB (workspaces_low)"
    assert shortage(rooms) == why
    assert shortage(rooms, Place.DATA, Place.STORE) == ""
    refused = no_room(why, host="h1")
    assert refused.data["where"] == "workspaces"
    assert refused.data["limit"] == "workspaces_low"
    assert refused.data["retry_after_s"] == 10
    assert why in refused.message
