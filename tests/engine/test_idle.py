"""Idleness and the cadence of snapshots, by moments given to them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.engine.cadence import Cadence
from orchestrator.engine.idle import LONGEST_LOOK_S, SHORTEST_LOOK_S, STANDING_LOOK_S, Idleness, Sample, at_work

QUIET = Sample(src=5, processes=1, waiting_bytes=0, commands=0, passages=0, cpu_s=1.0, calls=False)


@pytest.mark.parametrize(
    ("now", "happens"),
    [
        (QUIET, ""),
        (replace(QUIET, src=6), "output"),
        (replace(QUIET, processes=2), "child"),
        (replace(QUIET, processes=0), ""),
        (replace(QUIET, waiting_bytes=1), "unread"),
        (replace(QUIET, commands=1), "command"),
        (replace(QUIET, passages=1), "connection"),
        (replace(QUIET, calls=True), "model"),
        (replace(QUIET, cpu_s=1.2), ""),  # a runtime's ticking, in ten seconds
        (replace(QUIET, cpu_s=1.3), "cpu"),
        (replace(QUIET, cpu_s=None), ""),
    ],
)
def test_what_happens_between_two_looks(now: Sample, happens: str) -> None:
    assert at_work(QUIET, now, apart_s=10.0) == happens


def test_it_rests_at_half_of_the_time_and_sleeps_at_all_of_it() -> None:
    idle = Idleness(60.0, now=0.0)
    assert idle.saw(QUIET, 10.0) == "first look", "it is not known what was before"
    assert idle.saw(QUIET, 39.0) == ""
    assert not idle.rests(39.9) and idle.rests(40.0) and not idle.sleeps(69.9) and idle.sleeps(70.0)
    assert idle.saw(replace(QUIET, src=6), 69.0) == "output"
    assert not idle.rests(98.9) and idle.rests(99.0)
    idle.touched(100.0)
    assert not idle.rests(129.9) and idle.sleeps(160.0)


def test_it_is_looked_at_as_often_as_the_limit_asks_for() -> None:
    for limit_s, wait_s in ((0.4, SHORTEST_LOOK_S), (8.0, 1.0), (3600.0, LONGEST_LOOK_S)):
        assert Idleness(limit_s, now=100.0).look_at(frozen=False) == 100.0 + wait_s
    assert Idleness(3600.0, now=0.0).look_at(frozen=True) == STANDING_LOOK_S, "a command beside it waits"
    never = Idleness(None, now=0.0)
    assert never.look_at(frozen=False) is None and not never.rests(1e9) and not never.sleeps(1e9)


def test_a_snapshot_is_due_by_the_age_of_the_last_one() -> None:
    assert not Cadence(None, now=0.0).due(1e9, frozen=False)
    cadence = Cadence(60.0, now=100.0, age_s=45.0)
    assert not cadence.due(114.9, frozen=False) and cadence.due(115.0, frozen=False)
    assert Cadence(60.0, now=100.0, age_s=1e6).due(100.0, frozen=False), "long ago: now"
    assert not Cadence(60.0, now=100.0, age_s=-5.0).due(159.9, frozen=False), "by another host's clock"
    cadence.taken(116.0, frozen=False)
    assert cadence.moment(frozen=False) == 176.0


def test_what_stands_still_is_kept_once() -> None:
    cadence = Cadence(60.0, now=0.0)
    cadence.taken(60.0, frozen=True)
    assert cadence.moment(frozen=True) is None and not cadence.due(1000.0, frozen=True)
    assert cadence.due(1001.0, frozen=False), "thawed, and the time is over"
