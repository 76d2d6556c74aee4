"""How an execution ended, and what it leaves: the outcome (pure) and the list of artifacts."""

from __future__ import annotations

import hashlib
import logging
from typing import Any, Final

from orchestrator import events
from orchestrator.engine.reading import Exit
from orchestrator.errors import CarrelError
from orchestrator.events import Entry
from orchestrator.execution import GIB, Outcome, OutcomeKind, Reason
from orchestrator.workspace import DiskUse, Files

logger = logging.getLogger(__name__)

EXIT_WAITING: Final = 75  # EX_TEMPFAIL: hibernate me until a message comes
EXIT_CONFIGURATION: Final = 78  # EX_CONFIG
ARTIFACTS: Final = 1000  # so many are listed; the others stay in the workspace
HASHED_BYTES: Final = 4 * GIB  # of so much the sha256 is told; beyond it the end of an execution would wait too long
_READ_BYTES: Final = 1 << 20


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


def artifacts(files: Files) -> list[Entry]:
    """What lies under /workspace/artifacts, as events: regular files in the order of their paths, at most ARTIFACTS.
    `path` is relative to that folder. Blocking: call it in a thread. What cannot be read is left out, and logged."""
    listed: list[Entry] = []
    after, hashed = "", 0
    while len(listed) < ARTIFACTS:
        try:
            page = files.list("artifacts", recursive=True, after=after, limit=ARTIFACTS)
        except CarrelError:  # no such folder, or something else of that name
            return listed
        if not page:
            return listed
        for stat in page:
            after = stat.path
            if stat.kind != "file" or len(listed) == ARTIFACTS:
                continue
            path = stat.path.removeprefix("artifacts/")
            data: dict[str, Any] = {"path": path.encode(errors="replace").decode(), "size_bytes": stat.size_bytes}
            try:
                if hashed + stat.size_bytes <= HASHED_BYTES:
                    hashed += stat.size_bytes
                    data["sha256"] = _sha256(files, stat.path)
            except (CarrelError, OSError) as failure:
                logger.warning("an artifact cannot be read", extra={"path": path, "why": str(failure)})
                continue
            listed.append(Entry(events.ARTIFACT, data))
    return listed


def _sha256(files: Files, path: str) -> str:
    digest, offset = hashlib.sha256(), 0
    file = files.open(path)
    try:
        while offset < file.stat.size_bytes and (data := file.read(offset, _READ_BYTES)):
            digest.update(data)
            offset += len(data)
    finally:
        file.close()
    return digest.hexdigest()
