"""Whether anything happens in a sandbox: from what was seen at two moments, and since when it was nothing. Pure: time
is an argument, and nothing is asked here.

Idle is what waits for input: no output, no child, no message on its way to the harness, no open call to a model or
through the outlet, no command beside it, and no CPU beyond a trace. A child that only sleeps is no idleness: somebody
waits for it. Half the limit idle: it may stand still (Rest). All of it: it may sleep (FallAsleep).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TRACE_S: Final = 0.02  # of CPU between two looks,
TRACE_PART: Final = 0.02  # and of the time between them: runtimes that tick
LOOKS: Final = 8  # within the limit
SHORTEST_LOOK_S: Final = 0.1
LONGEST_LOOK_S: Final = 15.0
STANDING_LOOK_S: Final = 1.0  # while it stands still: a command beside it waits for the thaw


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment. `src`: the last frame. `processes`: the harness among them. `waiting_bytes`: of
    messages it has not read. `commands`: beside it. `passages`: through the outlet. `cpu_s`: since start, None = not
    known. `calls`: a model call is under way."""

    src: int
    processes: int
    waiting_bytes: int
    commands: int
    passages: int
    cpu_s: float | None
    calls: bool


def at_work(before: Sample, now: Sample, apart_s: float) -> str:
    """What happens, in one word; "" = nothing."""
    if now.src != before.src:
        return "output"
    if now.processes > 1:
        return "child"
    if now.waiting_bytes:
        return "unread"
    if now.commands:
        return "command"
    if now.passages:
        return "connection"
    if now.calls:
        return "model"
    if before.cpu_s is None or now.cpu_s is None:
        return ""
    return "cpu" if now.cpu_s - before.cpu_s > TRACE_S + TRACE_PART * apart_s else ""


class Idleness:
    """Of one attempt in one epoch: an adopted one begins to be idle when it is adopted. `limit_s` None: never."""

    def __init__(self, limit_s: float | None, now: float) -> None:
        self.limit_s = limit_s
        self._since = now
        self._looked_at = now
        self._last: Sample | None = None

    def touched(self, now: float) -> None:
        """Something was done with it that no sample shows."""
        self._since = now

    def saw(self, sample: Sample, now: float) -> str:
        """One more look; what happened since the one before."""
        before, self._last = self._last, sample
        happens = "first look" if before is None else at_work(before, sample, now - self._looked_at)
        self._looked_at = now
        if happens:
            self._since = now
        return happens

    def rests(self, now: float) -> bool:
        return self.limit_s is not None and now - self._since >= self.limit_s / 2

    def sleeps(self, now: float) -> bool:
        return self.limit_s is not None and now - self._since >= self.limit_s

    def look_at(self, *, frozen: bool) -> float | None:
        """When to look again, by the same clock; None = never."""
        if self.limit_s is None:
            return None
        wait_s = min(max(self.limit_s / LOOKS, SHORTEST_LOOK_S), LONGEST_LOOK_S)
        return self._looked_at + (min(wait_s, STANDING_LOOK_S) if frozen else wait_s)
