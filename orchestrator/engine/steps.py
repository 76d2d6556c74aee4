"""What to do next with an execution that has a sandbox: a pure function of what is known. No I/O, no clock.

Level-triggered: the view is taken anew before every step, so a bell that rang twice, or never, changes nothing but
the moment. The order of the questions is the order of what matters: to end first, then to stop, then to change.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.execution import InterruptWant, ResourcesWant, SnapshotWant, Wants
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
    snapshot_due: bool = False  # a periodic one
    rests: bool = False  # idle for long enough to stand still
    idle: bool = False  # and to sleep
    disk_passed: bool = False  # its files take more than they may, in a store that cannot bound them


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
class StopForDisk:
    """Enter STOPPING because its files take more than they may."""


@dataclass(frozen=True, slots=True)
class Cut:
    """HIBERNATING: to HIBERNATED with a snapshot, or back."""


@dataclass(frozen=True, slots=True)
class Hibernate:
    """Enter HIBERNATING because somebody wants it."""

    want: str


@dataclass(frozen=True, slots=True)
class FallAsleep:
    """Enter HIBERNATING because nothing happens."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Freeze, and stay RUNNING: nothing has happened for a while."""


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Cut, and go on. None: the periodic one."""

    want: SnapshotWant | None


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
    | StopForDisk
    | Cut
    | Hibernate
    | FallAsleep
    | Rest
    | TakeSnapshot
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
    if view.disk_passed and view.state is _S.RUNNING:
        return StopForDisk()
    if view.state is _S.HIBERNATING:
        if view.exited or view.reachable:
            return Cut()
        return Thaw() if view.frozen else None
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
    wants = view.wants
    if wants.pause is not None:
        return Settle(wants.pause.id)
    if wants.hibernate is not None:
        return _hibernate(view, wants.hibernate)
    return TakeSnapshot(wants.snapshots[0]) if wants.snapshots else None


def _hibernate(view: View, want: str) -> Step:
    if view.resumes:
        return Hibernate(want)
    return Settle(want, "this harness cannot go on from its files: it would begin anew; pause it instead")


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
    if wants.hibernate is not None:
        return _hibernate(view, wants.hibernate)
    if wants.snapshots:
        return TakeSnapshot(wants.snapshots[0])
    running = view.state is _S.RUNNING
    if view.frozen and running and (not view.rests or wants.interrupts):
        return Thaw()
    if wants.resources is not None:
        return Resize(wants.resources)
    for interrupt in wants.interrupts:
        if interrupt.attempt != view.attempt:
            return Settle(interrupt.id, "it was for an earlier attempt")
        if interrupt.id not in view.interrupts_sent:
            return Interrupt(interrupt)
    if running and view.idle:
        return FallAsleep()
    if view.snapshot_due:
        return TakeSnapshot(None)
    return Rest() if running and view.rests and not view.frozen else None
