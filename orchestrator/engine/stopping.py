"""How far an end has come, by the owner's own monotonic clock: what it waits for, since when, and until when.

Three ways lead there that need a clock: the deadline, the grace after a call was refused for want of money, and the
grace between asking the harness to end and killing it. Knows no frames and takes no step (`steps`).
"""

from __future__ import annotations

from typing import Final

from orchestrator.clock import Clock
from orchestrator.execution import Execution, Outcome, OutcomeKind
from orchestrator.lifecycle import ExecutionState

KILL_LIMIT_S: Final = 10.0  # after SIGKILL to all: so long for the exit frame, then the sandbox is removed as it is


class Stopping:
    """Of one attempt in one epoch. `cause`: why it stops, where this owner decided it. `over_budget`: the figures of a
    call that was refused, "" = within, or the budget says to wait. `unbounded`: there is no budget."""

    def __init__(self, clock: Clock, execution: Execution, deadline_in_s: float | None) -> None:
        now = clock.monotonic()
        self.cause: Outcome | None = None
        self.over_budget = ""
        self.unbounded = True
        self._clock = clock
        self._declared_grace_s = execution.spec.limits.grace_s
        self._wants = execution.wants
        self._deadline_at = None if deadline_in_s is None else now + deadline_in_s
        self._over_since: float | None = None
        self._asked_at: float | None = None
        self._killed_at: float | None = None
        self.read(execution)

    def read(self, record: Execution) -> None:
        """The record, as it is now."""
        self._wants = record.wants
        self.unbounded = record.budget.micros is None and record.budget.tokens is None
        self.over_budget = record.over_budget if record.budget.on_exceeded == "fail" else ""
        if not self.over_budget:
            self._over_since = None
        elif self._over_since is None:
            self._over_since = self._clock.monotonic()

    def asked(self) -> None:
        """SIGTERM was sent."""
        self._asked_at = self._clock.monotonic()

    def not_asked(self) -> None:
        """It was not, after all."""
        self._asked_at = None

    def kill_sent(self) -> None:
        """SIGKILL was sent."""
        self._killed_at = self._clock.monotonic()

    @property
    def cancel_reason(self) -> str:
        """What whoever cancelled it said, "" = nothing, or nobody did."""
        return self._wants.cancel.reason if self._wants.cancel is not None else ""

    @property
    def grace_s(self) -> float:
        """Between SIGTERM and SIGKILL."""
        declared, cancel = self._declared_grace_s, self._wants.cancel
        if cancel is None:
            return declared
        cancelled = self.cause is None or self.cause.kind is OutcomeKind.CANCELLED
        return cancel.grace_s if cancelled else min(declared, cancel.grace_s)

    @property
    def deadline_passed(self) -> bool:
        return self._passed(self._deadline_at)

    @property
    def budget_passed(self) -> bool:
        """It had its grace since the refusal was seen."""
        return self._passed(self._budget_at)

    @property
    def was_asked(self) -> bool:
        return self._asked_at is not None

    @property
    def grace_passed(self) -> bool:
        return self._passed(self._grace_at)

    @property
    def killed(self) -> bool:
        return self._killed_at is not None

    @property
    def kill_passed(self) -> bool:
        """SIGKILL has had its time."""
        return self._passed(self._kill_limit_at)

    def moments(self, state: ExecutionState) -> list[float]:
        """When to look again, by the monotonic clock."""
        if state is ExecutionState.STOPPING:
            waited_for = self._kill_limit_at or self._grace_at
            return [] if waited_for is None else [waited_for]
        budget_at = self._budget_at if state is ExecutionState.RUNNING else None
        return [moment for moment in (self._deadline_at, budget_at) if moment is not None]

    @property
    def _budget_at(self) -> float | None:
        return None if self._over_since is None else self._over_since + self._declared_grace_s

    @property
    def _grace_at(self) -> float | None:
        return None if self._asked_at is None else self._asked_at + self.grace_s

    @property
    def _kill_limit_at(self) -> float | None:
        return None if self._killed_at is None else self._killed_at + KILL_LIMIT_S

    def _passed(self, moment: float | None) -> bool:
        return moment is not None and self._clock.monotonic() >= moment
