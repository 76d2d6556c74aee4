"""What comes next, from what is known: the order of ends over wishes, and no step that cannot be taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engine.steps import (
    Cut,
    FallAsleep,
    Finish,
    Hibernate,
    Interrupt,
    Kill,
    Pause,
    Resize,
    Rest,
    Resume,
    Settle,
    Step,
    StopForBudget,
    StopForCancel,
    StopForDeadline,
    StopForDisk,
    TakeSnapshot,
    Terminate,
    Thaw,
    View,
    next_step,
)
from orchestrator.execution import CancelWant, InterruptWant, PauseWant, ResourcesWant, SnapshotWant, Wants
from orchestrator.lifecycle import WITH_SANDBOX, ExecutionState, Trigger, advance

S = ExecutionState
CANCEL = CancelWant("c", 1.0)
PAUSE, RESUME = PauseWant("p", True), PauseWant("r", False)
MORE = ResourcesWant("m", cpus=2.0)


def step(state: ExecutionState, wants: Wants | None = None, **known: Any) -> Step | None:
    facts: dict[str, Any] = {"reachable": True, "harness_started": True, **known}
    return next_step(View(state, wants or Wants(), attempt=2, **facts))


@pytest.mark.parametrize("state", [S.STARTING, S.RUNNING, S.PAUSED, S.HIBERNATING])
def test_ends_come_first(state: ExecutionState) -> None:
    everything = Wants(cancel=CANCEL, pause=PAUSE, resources=MORE)
    assert step(state, everything, deadline_passed=True, exited=True) == StopForCancel()
    assert step(state, Wants(pause=PAUSE), deadline_passed=True) == StopForDeadline()
    assert step(state, everything, reachable=False) == StopForCancel()


def test_over_budget() -> None:
    assert step(S.RUNNING, Wants(pause=PAUSE), budget_passed=True) == StopForBudget()
    assert step(S.RUNNING, budget_passed=True, deadline_passed=True) == StopForDeadline()
    assert step(S.PAUSED, budget_passed=True) is None, "it spends nothing"
    assert step(S.STARTING, budget_passed=True) is None
    assert step(S.STOPPING, budget_passed=True) == Terminate()


def test_stopping_goes_term_kill_finish() -> None:
    assert step(S.STOPPING) == Terminate()
    assert step(S.STOPPING, asked_to_stop=True) is None
    assert step(S.STOPPING, asked_to_stop=True, grace_passed=True) == Kill()
    assert step(S.STOPPING, asked_to_stop=True, grace_passed=True, killed=True) is None
    assert step(S.STOPPING, asked_to_stop=True, grace_passed=True, killed=True, kill_passed=True) == Finish()
    assert step(S.STOPPING, exited=True) == Finish()
    assert step(S.STOPPING, exited=True, reachable=False) == Finish()
    assert step(S.STOPPING, reachable=False) is None
    assert step(S.STOPPING, harness_started=False) == Finish()
    assert step(S.STOPPING, frozen=True) == Thaw()
    assert step(S.STOPPING, no_grace=True) == Kill()


def test_pausing() -> None:
    assert step(S.RUNNING, Wants(pause=PAUSE)) == Pause("p")
    assert step(S.RUNNING, Wants(pause=PAUSE), frozen=True) == Pause("p")
    assert step(S.PAUSED, Wants(pause=RESUME)) == Resume("r")
    assert step(S.PAUSED, Wants(pause=RESUME), reachable=False) == Resume("r")
    assert step(S.PAUSED, Wants(pause=PAUSE)) == Settle("p")
    assert step(S.RUNNING, Wants(pause=RESUME)) == Settle("r")
    assert step(S.RUNNING, frozen=True) == Thaw()
    assert step(S.PAUSED, frozen=True) is None
    assert step(S.STARTING, Wants(pause=PAUSE)) is None


def test_frozen_with_init_so_that_nobody_answers() -> None:
    """The engine's own pause: what an owner who comes later finds."""
    deaf: dict[str, Any] = {"frozen": True, "reachable": False}
    assert step(S.PAUSED, **deaf) is None
    assert step(S.PAUSED, Wants(pause=RESUME), **deaf) == Resume("r")
    assert step(S.PAUSED, Wants(pause=PAUSE), **deaf) == Settle("p")
    assert step(S.PAUSED, Wants(cancel=CANCEL), **deaf) == StopForCancel()
    assert step(S.RUNNING, Wants(pause=PAUSE), **deaf) == Thaw(), "its pipes are drained first"
    assert step(S.RUNNING, **deaf) == Thaw()
    assert step(S.STOPPING, **deaf) is None, "the way to it thaws it"


def test_other_wishes() -> None:
    now, before = InterruptWant("i", 2), InterruptWant("old", 1)
    assert step(S.RUNNING, Wants(resources=MORE)) == Resize(MORE)
    assert step(S.RUNNING, Wants(resources=MORE), reachable=False) is None
    assert step(S.RUNNING, Wants(interrupts=(now,))) == Interrupt(now)
    assert step(S.RUNNING, Wants(interrupts=(now,)), interrupts_sent=frozenset({"i"})) is None
    assert step(S.RUNNING, Wants(interrupts=(before, now))) == Settle("old", "it was for an earlier attempt")
    assert isinstance(step(S.RUNNING, Wants(hibernate="h")), Settle)


def test_sleeping() -> None:
    assert step(S.HIBERNATING, exited=True) == Cut()
    assert step(S.HIBERNATING, exited=True, reachable=False) == Cut()
    assert step(S.HIBERNATING) == Cut()
    assert step(S.HIBERNATING, frozen=True) == Cut()
    assert step(S.HIBERNATING, reachable=False) is None
    assert step(S.HIBERNATING, reachable=False, frozen=True) == Thaw()
    assert step(S.RUNNING, Wants(hibernate="h"), resumes=True, frozen=True) == Hibernate("h")
    assert step(S.PAUSED, Wants(hibernate="h"), resumes=True, reachable=False, frozen=True) == Hibernate("h")
    assert isinstance(step(S.RUNNING, Wants(hibernate="h")), Settle)


def test_idle() -> None:
    assert step(S.RUNNING, rests=True) == Rest()
    assert step(S.RUNNING, rests=True, frozen=True) is None
    assert step(S.RUNNING, frozen=True) == Thaw()
    assert step(S.RUNNING, Wants(interrupts=(InterruptWant("i", 2),)), rests=True, frozen=True) == Thaw()
    assert step(S.RUNNING, rests=True, idle=True, frozen=True) == FallAsleep()
    assert step(S.PAUSED, rests=True, idle=True, frozen=True) is None


def test_snapshots() -> None:
    wish = SnapshotWant("snp_1")
    assert step(S.RUNNING, Wants(snapshots=(wish,)), snapshot_due=True) == TakeSnapshot(wish)
    assert step(S.PAUSED, Wants(snapshots=(wish,)), frozen=True) == TakeSnapshot(wish)
    assert step(S.PAUSED, Wants(snapshots=(wish,)), frozen=True, reachable=False) == TakeSnapshot(wish)
    assert step(S.RUNNING, snapshot_due=True, rests=True) == TakeSnapshot(None)
    assert step(S.STARTING, Wants(snapshots=(wish,))) is None
    assert step(S.RUNNING, Wants(snapshots=(wish,), hibernate="h"), resumes=True) == Hibernate("h")
    assert step(S.RUNNING, Wants(snapshots=(wish,)), disk_passed=True) == StopForDisk()


wants = st.builds(
    Wants,
    cancel=st.none() | st.just(CANCEL),
    pause=st.sampled_from([None, PAUSE, RESUME]),
    hibernate=st.none() | st.just("h"),
    resources=st.none() | st.just(MORE),
    interrupts=st.lists(st.builds(InterruptWant, st.just("i"), st.integers(1, 2)), max_size=2).map(tuple),
)
views = st.builds(
    View,
    state=st.sampled_from(sorted(WITH_SANDBOX)),
    wants=wants,
    attempt=st.just(2),
    **dict.fromkeys(
        (
            *("reachable", "frozen", "exited", "harness_started", "deadline_passed", "budget_passed"),
            *("no_grace", "asked_to_stop", "grace_passed", "killed", "kill_passed", "resumes"),
            *("snapshot_due", "rests", "idle", "disk_passed"),
        ),
        st.booleans(),
    ),
)
TRIGGERS: dict[type[Any], Trigger] = {
    StopForCancel: Trigger.CANCEL,
    StopForDeadline: Trigger.DEADLINE,
    StopForBudget: Trigger.BUDGET,
    Finish: Trigger.STOPPED,
    StopForDisk: Trigger.DISK,
    Cut: Trigger.CUT,
    Hibernate: Trigger.HIBERNATE,
    FallAsleep: Trigger.IDLE,
    Pause: Trigger.PAUSE,
    Resume: Trigger.RESUME,
}


@given(views)
def test_no_step_is_impossible(view: View) -> None:
    taken = next_step(view)
    if type(taken) in TRIGGERS:
        advance(view.state, TRIGGERS[type(taken)])
    if isinstance(taken, Terminate | Kill | Pause | Resize | Interrupt | FallAsleep | Rest):
        assert view.reachable
    if isinstance(taken, Thaw):
        assert view.reachable or view.frozen
