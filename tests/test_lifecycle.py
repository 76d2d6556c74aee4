"""The table of states: every pair, listed or not; and what the table must never allow."""

from __future__ import annotations

import pytest

from orchestrator.lifecycle import (
    ASLEEP,
    TRANSITIONS,
    WITH_SANDBOX,
    ExecutionState,
    IllegalTransition,
    Trigger,
    advance,
)


@pytest.mark.parametrize("state", ExecutionState)
@pytest.mark.parametrize("trigger", Trigger)
def test_every_pair_is_listed_or_an_error(state: ExecutionState, trigger: Trigger) -> None:
    if (state, trigger) in TRANSITIONS:
        assert advance(state, trigger) is TRANSITIONS[state, trigger]
    else:
        with pytest.raises(IllegalTransition, match=f"{state}.*{trigger}"):
            advance(state, trigger)


def test_finished_is_final() -> None:
    assert not [trigger for state, trigger in TRANSITIONS if state is ExecutionState.FINISHED]


@pytest.mark.parametrize("state", sorted(set(ExecutionState) - {ExecutionState.FINISHED}))
def test_every_state_can_be_cancelled_or_is_being_stopped(state: ExecutionState) -> None:
    ends = {ExecutionState.STOPPING, ExecutionState.FINISHED}
    assert state is ExecutionState.STOPPING or advance(state, Trigger.CANCEL) in ends


@pytest.mark.parametrize("state", sorted(set(ExecutionState) - {ExecutionState.FINISHED}))
def test_every_state_leads_to_the_end(state: ExecutionState) -> None:
    reached, before = {state}, set[ExecutionState]()
    while reached != before:
        before = set(reached)
        reached |= {to for (came_from, _), to in TRANSITIONS.items() if came_from in reached}
    assert ExecutionState.FINISHED in reached


@pytest.mark.parametrize("state", sorted(WITH_SANDBOX))
def test_a_sandbox_can_be_lost_in_every_state_that_has_one(state: ExecutionState) -> None:
    assert advance(state, Trigger.SANDBOX_ABANDONED) is ExecutionState.FINISHED


def test_only_a_claim_makes_a_sandbox() -> None:
    into = {trigger for (state, trigger), to in TRANSITIONS.items() if to in WITH_SANDBOX and state not in WITH_SANDBOX}
    assert into == {Trigger.CLAIMED}
    assert not ASLEEP & WITH_SANDBOX
