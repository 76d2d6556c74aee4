"""What to do when the platform failed an execution: cause and count in, decision out. Pure; knows no clock and no
driver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.execution import Outcome, OutcomeKind, Reason, RetryPolicy


class Cause(StrEnum):
    """Whose fault it was, as far as can be told."""

    IMAGE_MISSING = "image_missing"
    INFEASIBLE = "infeasible"
    BAD_START = "bad_start"  # argv cannot be executed, a file does not fit: the same again next time
    START_FAILED = "start_failed"  # the engine said no, for a reason of its own
    DISK_FULL = "disk_full"
    SANDBOX_LOST = "sandbox_lost"
    INIT_LOST = "init_lost"
    HOST_LOST = "host_lost"
    HARNESS_KILLED = "harness_killed"  # by a signal nobody sent through Carrel, and not for want of memory


@dataclass(frozen=True, slots=True)
class Again:
    """Try again, not before `after_s` seconds from now."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End it so."""

    outcome: Outcome


_REASON = {
    Cause.IMAGE_MISSING: Reason.IMAGE_MISSING,
    Cause.INFEASIBLE: Reason.BAD_CONFIGURATION,
    Cause.BAD_START: Reason.BAD_CONFIGURATION,
    Cause.START_FAILED: Reason.START_FAILED,
    Cause.DISK_FULL: Reason.DISK_FULL,
    Cause.SANDBOX_LOST: Reason.SANDBOX_LOST,
    Cause.INIT_LOST: Reason.INIT_LOST,
    Cause.HOST_LOST: Reason.HOST_LOST,
    Cause.HARNESS_KILLED: Reason.SIGNAL,
}
_LOSSES = frozenset({Cause.SANDBOX_LOST, Cause.INIT_LOST, Cause.HOST_LOST})
_FINAL = frozenset({Cause.IMAGE_MISSING, Cause.INFEASIBLE, Cause.BAD_START})


def decide(
    cause: Cause, *, failures: int, policy: RetryPolicy, ran: bool, resumes: bool, files_intact: bool, detail: str = ""
) -> Again | GiveUp:
    """`failures` counts those before this one, `ran`: the harness had started in some attempt, `resumes`: it declared
    that it can go on in its old files, `files_intact`: they survived. Nothing that ran is run again silently
    (reliability P4): after a loss `auto` tries again only a harness that never ran, or one that resumes and has its
    files; `retry` always does. A harness that was killed is such a loss, with a policy of its own (`on_killed`)."""
    kind = OutcomeKind.LOST if cause in _LOSSES else OutcomeKind.FAILED
    end = GiveUp(Outcome(kind, _REASON[cause], detail))
    if cause in _FINAL or failures + 1 > policy.max_failures:
        return end
    if ran and (cause in _LOSSES or cause is Cause.HARNESS_KILLED):
        again = policy.on_killed if cause is Cause.HARNESS_KILLED else policy.on_lost
        if again == "end":
            return end
        if again == "auto" and not (resumes and files_intact):
            return end
    return Again(min(policy.backoff_s * 2**failures, policy.backoff_max_s))
