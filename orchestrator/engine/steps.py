"""What to do next with an execution that has a sandbox: a pure function of what is known. No I/O, no clock.

Level-triggered: the view is taken anew before every step, so a bell that rang twice, or never, changes nothing but
the moment. The order of the questions is the order of what matters: to end first, then to stop, then to change.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.execution import InterruptWant, ResourcesWant, Wants
from orchestrator.lifecycle import ExecutionState


@dataclass(frozen=True, slots=True)
class View:
    """What is known now. `reachable`: init is at the other end of a line. `deadline_passed`, `grace_passed`: by the
    owner's own monotonic clock."""

    state: ExecutionState
    wants: Wants
    attempt: int
    reachable: bool = False
    frozen: bool = False
    exited: bool = False  # its exit frame is in the history
    harness_started: bool = False  # as init says; False too where nobody knows
    resumes: bool = False
    deadline_passed: bool = False
    budget_passed: bool = False  # a call was refused, and the grace since then is over
    no_grace: bool = False
    asked_to_stop: bool = False  # SIGTERM was sent in this epoch
    grace_passed: bool = False
    killed: bool = False  # SIGKILL was sent in this epoch
    kill_passed: bool = False  # and has had its time
    interrupts_sent: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StopForCancel:
    """Enter STOPPING because somebody wants it."""


@dataclass(frozen=True, slots=True)
class StopForDeadline:
    """Enter STOPPING because time is up."""


@dataclass(frozen=True, slots=True)
class StopForBudget:
    """Enter STOPPING because it goes on after a call was refused for want of money or tokens."""


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM to all but init."""


@dataclass(frozen=True, slots=True)
class Kill:
    """SIGKILL to all but init."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing of it runs that matters: list, write the end, remove."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The harness asked to sleep and has ended: HIBERNATED."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Freeze, then PAUSED."""

    want: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Thaw, then RUNNING."""

    want: str


@dataclass(frozen=True, slots=True)
class Thaw:
    """Frozen though nobody wants that: a stopped owner's late hand, or a crash between thaw and record."""


@dataclass(frozen=True, slots=True)
class Settle:
    """A wish that is fulfilled already, or cannot be: its receipt only."""

    want: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Resize:
    """Other limits for the running sandbox."""

    want: ResourcesWant


@dataclass(frozen=True, slots=True)
class Interrupt:
    """The harness's interrupt signal, once."""

    want: InterruptWant


Step = (
    StopForCancel
    | StopForDeadline
    | StopForBudget
    | Terminate
    | Kill
    | Finish
    | Cut
    | Pause
    | Resume
    | Thaw
    | Settle
    | Resize
    | Interrupt
)

_S = ExecutionState


def next_step(view: View) -> Step | None:
    """The next thing to do, or None: wait until something happens."""
    if view.state is _S.STOPPING:
        return _stopping(view)
    if view.wants.cancel is not None:
        return StopForCancel()
    if view.deadline_passed:
        return StopForDeadline()
    if view.budget_passed and view.state is _S.RUNNING:  # one that stands still spends nothing
        return StopForBudget()
    if view.state is _S.HIBERNATING:
        return Cut() if view.exited else None
    pause = view.wants.pause
    if view.state is _S.PAUSED and pause is not None and not pause.paused:
        return Resume(pause.id)  # where init is frozen with the rest, it is reached only after that
    if view.state is _S.STARTING:
        return None
    if not view.reachable:
        return _asleep(view) if view.frozen else None
    return _living(view)


def _asleep(view: View) -> Step | None:
    """Nobody answers and it is frozen: perhaps init too (the engine's own pause). What needs no init can be done."""
    if view.state is not _S.PAUSED:
        return Thaw()
    return Settle(view.wants.pause.id) if view.wants.pause is not None else None


def _stopping(view: View) -> Step | None:
    if view.exited:
        return Finish()
    if not view.reachable:
        return None
    if not view.harness_started:  # cancelled before it began: nobody to ask
        return Finish()
    if view.frozen:
        return Thaw()
    if view.killed:
        return Finish() if view.kill_passed else None
    if view.grace_passed or view.no_grace:
        return Kill()
    return None if view.asked_to_stop else Terminate()


def _living(view: View) -> Step | None:
    wants = view.wants
    pause = wants.pause
    if pause is not None:
        if pause.paused and view.state is _S.RUNNING:
            return Pause(pause.id)
        return Settle(pause.id)
    if view.frozen and view.state is _S.RUNNING:
        return Thaw()
    if wants.resources is not None:
        return Resize(wants.resources)
    for interrupt in wants.interrupts:
        if interrupt.attempt != view.attempt:
            return Settle(interrupt.id, "it was for an earlier attempt")
        if interrupt.id not in view.interrupts_sent:
            return Interrupt(interrupt)
    if wants.hibernate is not None:
        return Settle(wants.hibernate, "this harness cannot go on from its files: it would begin anew")
    return None
