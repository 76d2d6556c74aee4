"""How an execution ended: the outcome. Pure."""

from __future__ import annotations

from typing import Final

from orchestrator.engine.reading import Exit
from orchestrator.execution import Outcome, OutcomeKind, Reason
from orchestrator.workspace import DiskUse

EXIT_WAITING: Final = 75  # EX_TEMPFAIL: hibernate me until a message comes
EXIT_CONFIGURATION: Final = 78  # EX_CONFIG


def cancelled(reason: str) -> Outcome:
    """As somebody wanted."""
    return Outcome(OutcomeKind.CANCELLED, Reason.CANCELLED, reason)


def timed_out(deadline_s: float | None) -> Outcome:
    """Its own deadline passed."""
    limit = f" of {deadline_s:g} s" if deadline_s is not None else ""
    return Outcome(OutcomeKind.TIMED_OUT, Reason.DEADLINE, f"the deadline{limit} passed")


def over_budget(figures: str) -> Outcome:
    """A call was refused for want of money or tokens. `figures` "" = not known any more."""
    return Outcome(OutcomeKind.FAILED, Reason.BUDGET, f"over budget: {figures}" if figures else "over budget")


def disk_full(use: DiskUse | None) -> Outcome:
    """Its files took more than they may. `use` None = the figures are not known any more."""
    message = "its files took more than its disk limit"
    if use is not None:
        message = f"its files took {use.used_bytes} bytes, and may take {use.limit_bytes}"
    return Outcome(OutcomeKind.FAILED, Reason.DISK_FULL, message)


def exited(end: Exit) -> Outcome:
    """The harness ended by itself, or something in its sandbox ended it."""
    if end.unstarted:
        return Outcome(
            OutcomeKind.FAILED,
            Reason.COMMAND_NOT_FOUND,
            f"the command could not be started: {end.unstarted}",
            end.exit_code,
        )
    if end.signal is not None:
        if end.oom:
            return Outcome(OutcomeKind.FAILED, Reason.OOM, "ended for using too much memory", None, end.signal)
        return Outcome(OutcomeKind.FAILED, Reason.SIGNAL, f"ended by signal {end.signal}", None, end.signal)
    if end.exit_code == 0:
        return Outcome(OutcomeKind.SUCCEEDED, Reason.EXIT_CODE, "", 0)
    if end.exit_code == EXIT_CONFIGURATION:
        return Outcome(OutcomeKind.FAILED, Reason.BAD_CONFIGURATION, "the harness refused its configuration", 78)
    return Outcome(OutcomeKind.FAILED, Reason.EXIT_CODE, f"exited with {end.exit_code}", end.exit_code)


def outcome_of(cause: Outcome, end: Exit | None) -> Outcome:
    """The first cause wins; what the harness did then is told beside it."""
    if end is None:
        return cause
    return Outcome(cause.kind, cause.reason, cause.message, end.exit_code, end.signal)
