"""How an outcome becomes an exit code and, where a person needs one, a sentence. Pure."""

from __future__ import annotations

from orchestrator.client.nouns import Record
from orchestrator.execution import OutcomeKind, Reason

OURS, TIMEOUT, CTRL_C = 125, 124, 130
#: Reasons that kind, exit code and signal have said already.
SELF_EVIDENT = frozenset({Reason.EXIT_CODE, Reason.SIGNAL, Reason.CANCELLED, Reason.DEADLINE})

#: What to do about it, where there is something to do.
_REMEDIES = {
    Reason.OOM: "give it more memory: -m",
    Reason.DEADLINE: "give it more time: --timeout",
    Reason.BUDGET: "give it more: --budget-usd, --budget-tokens; or --on-budget wait, to raise it with `carrel update`",
    Reason.IMAGE_MISSING: "check --image, or make the image with `make image`",
    Reason.COMMAND_NOT_FOUND: "check the command's name; it must be in the image or among the uploaded files",
    Reason.DISK_FULL: "free space on the server",
}


def exit_code(record: Record, *, interrupted: bool = False) -> int:
    """The process's own code; 128+n for a signal, as shells have it; 124 for a deadline; 125 when the platform ended
    it; 130 when Ctrl-C ended what had not begun."""
    outcome = record.outcome
    if outcome is None:
        return OURS
    if outcome.kind is OutcomeKind.TIMED_OUT:
        return TIMEOUT
    if outcome.exit_code is not None:
        # Ended for its budget, many a program says that all is well.
        return outcome.exit_code if outcome.exit_code or outcome.kind is OutcomeKind.SUCCEEDED else OURS
    if outcome.signal is not None:
        return 128 + outcome.signal
    if interrupted:
        return CTRL_C
    return 0 if outcome.kind is OutcomeKind.SUCCEEDED else OURS


def summary(record: Record) -> str:
    """`FAILED exit 3`, `FAILED oom signal 9`, `CANCELLED signal 15`, `TIMED_OUT signal 15`; `RUNNING at rest`."""
    outcome = record.outcome
    if outcome is None:
        return f"{record.state} at rest" if record.frozen else str(record.state)
    words = [str(outcome.kind)]
    if outcome.kind is not OutcomeKind.SUCCEEDED and outcome.reason not in SELF_EVIDENT:
        words.append(str(outcome.reason))
    if outcome.exit_code:
        words.append(f"exit {outcome.exit_code}")
    elif outcome.signal is not None:
        words.append(f"signal {outcome.signal}")
    return " ".join(words)


def complaint(record: Record) -> tuple[str, str]:
    """(what to say, remedy) where the exit code alone would leave a person guessing; else two empty strings."""
    outcome = record.outcome
    if outcome is None or outcome.kind is OutcomeKind.SUCCEEDED:
        return "", ""
    by_harness = outcome.reason is Reason.BAD_CONFIGURATION and outcome.exit_code is not None  # it has said why itself
    if outcome.reason in (SELF_EVIDENT - {Reason.DEADLINE}) or by_harness:
        return "", ""
    said = f"{record.id} ended {outcome.kind} ({outcome.reason})"
    if outcome.message:
        said += f": {outcome.message}"
    return said, _REMEDIES.get(outcome.reason, "")
