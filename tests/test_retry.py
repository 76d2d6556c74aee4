"""Cause and count in, decision out: nothing that ran is run again silently, and nothing is tried for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.execution import OutcomeKind, Reason, RetryPolicy
from orchestrator.retry import Again, Cause, GiveUp, decide

FINAL = [Cause.IMAGE_MISSING, Cause.INFEASIBLE, Cause.BAD_START]
LOSSES = [Cause.SANDBOX_LOST, Cause.INIT_LOST, Cause.HOST_LOST]
PASSING = [Cause.START_FAILED, Cause.DISK_FULL]


def decided(cause: Cause, **given_: object) -> Again | GiveUp:
    facts = {"failures": 0, "policy": RetryPolicy(), "ran": True, "resumes": False, "files_intact": True, **given_}
    return decide(cause, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("cause", FINAL)
def test_what_would_fail_again_is_not_tried_again(cause: Cause) -> None:
    decision = decided(cause, ran=False, policy=RetryPolicy(on_lost="retry"))
    assert isinstance(decision, GiveUp)
    assert decision.outcome.kind is OutcomeKind.FAILED


@pytest.mark.parametrize("cause", LOSSES)
@pytest.mark.parametrize(
    ("on_lost", "ran", "resumes", "intact", "again"),
    [
        ("auto", True, False, True, False),
        ("auto", True, True, False, False),
        ("auto", True, True, True, True),
        ("auto", False, False, False, True),
        ("retry", True, False, False, True),
        ("end", True, True, True, False),
        ("end", False, False, True, True),
    ],
)
def test_after_a_loss(cause: Cause, on_lost: str, ran: bool, resumes: bool, intact: bool, again: bool) -> None:
    policy = RetryPolicy(on_lost=on_lost)  # type: ignore[arg-type]
    decision = decided(cause, policy=policy, ran=ran, resumes=resumes, files_intact=intact, detail="why")
    assert isinstance(decision, Again) is again
    if isinstance(decision, GiveUp):
        assert decision.outcome.kind is OutcomeKind.LOST
        assert decision.outcome.reason.value == cause.value
        assert decision.outcome.message == "why"


@pytest.mark.parametrize(
    ("on_killed", "resumes", "intact", "again"),
    [
        ("auto", False, True, False),
        ("auto", True, False, False),
        ("auto", True, True, True),
        ("retry", False, False, True),
        ("end", True, True, False),
    ],
)
def test_after_a_kill(on_killed: str, resumes: bool, intact: bool, again: bool) -> None:
    policy = RetryPolicy(on_killed=on_killed, on_lost="retry" if on_killed == "end" else "end")  # type: ignore[arg-type]
    decision = decided(Cause.HARNESS_KILLED, policy=policy, resumes=resumes, files_intact=intact)
    assert isinstance(decision, Again) is again
    if isinstance(decision, GiveUp):
        assert (decision.outcome.kind, decision.outcome.reason) == (OutcomeKind.FAILED, Reason.SIGNAL)


@pytest.mark.parametrize("cause", PASSING)
def test_a_failed_start_is_tried_again_until_the_count_is_reached(cause: Cause) -> None:
    policy = RetryPolicy(max_failures=2)
    assert isinstance(decided(cause, failures=1, policy=policy), Again)
    last = decided(cause, failures=2, policy=policy)
    assert isinstance(last, GiveUp)
    assert last.outcome.reason in (Reason.START_FAILED, Reason.DISK_FULL)


@given(st.integers(0, 30), st.floats(0.001, 10), st.floats(0.001, 100))
def test_waits_grow_to_their_bound(failures: int, first_s: float, longest_s: float) -> None:
    policy = RetryPolicy(max_failures=100, backoff_s=first_s, backoff_max_s=longest_s)
    one, next_ = (decided(Cause.START_FAILED, failures=n, policy=policy) for n in (failures, failures + 1))
    assert isinstance(one, Again) and isinstance(next_, Again)
    assert one.after_s <= next_.after_s <= longest_s


@given(st.sampled_from(Cause), st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["auto", "retry", "end"]))
def test_every_cause_ends_some_time(cause: Cause, ran: bool, resumes: bool, intact: bool, on_lost: str) -> None:
    policy = RetryPolicy(on_lost=on_lost)  # type: ignore[arg-type]
    decision = decided(
        cause, failures=policy.max_failures, policy=policy, ran=ran, resumes=resumes, files_intact=intact
    )
    assert isinstance(decision, GiveUp)
