"""How it ended."""

from __future__ import annotations

import pytest

from orchestrator.engine.ending import cancelled, exited, outcome_of, timed_out
from orchestrator.engine.reading import Exit
from orchestrator.execution import Outcome, OutcomeKind, Reason

F = OutcomeKind.FAILED


@pytest.mark.parametrize(
    ("end", "kind", "reason"),
    [
        (Exit(exit_code=0), OutcomeKind.SUCCEEDED, Reason.EXIT_CODE),
        (Exit(exit_code=1), F, Reason.EXIT_CODE),
        (Exit(exit_code=78), F, Reason.BAD_CONFIGURATION),
        (Exit(exit_code=127), F, Reason.EXIT_CODE),
        (Exit(exit_code=127, unstarted="No such file"), F, Reason.COMMAND_NOT_FOUND),
        (Exit(signal=9), F, Reason.SIGNAL),
        (Exit(signal=9, oom=True), F, Reason.OOM),
    ],
)
def test_by_itself(end: Exit, kind: OutcomeKind, reason: Reason) -> None:
    outcome = exited(end)
    assert (outcome.kind, outcome.reason) == (kind, reason)
    assert (outcome.exit_code, outcome.signal) == (end.exit_code, end.signal)


@pytest.mark.parametrize("cause", [cancelled("enough"), timed_out(3.0)])
def test_the_first_cause_wins(cause: Outcome) -> None:
    for end in (None, Exit(exit_code=0), Exit(signal=9, oom=True)):
        outcome = outcome_of(cause, end)
        assert (outcome.kind, outcome.reason, outcome.message) == (cause.kind, cause.reason, cause.message)
        assert outcome.exit_code == (end.exit_code if end else None)
