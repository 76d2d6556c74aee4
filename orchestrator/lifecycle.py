"""The life of one execution, as a table. Knows nothing of Docker, Redis or the clock.

            ┌────────── sandbox lost, start failed (retried) ───────────┐
            ▼                                                           │
         QUEUED ──claimed──▶ STARTING ──harness started──▶ RUNNING ◀──▶ PAUSED
            ▲                   │                        │   │  ▲          │
            │ wake              │ cancel, deadline       │   │  └ mail     │ cancel, deadline, hibernate
       HIBERNATED ◀──cut── HIBERNATING ◀──idle, ask──────┘   │             │
                                │                            ▼             │
                                └──────cancel──────────▶ STOPPING ◀────────┘
                                                             └──stopped──▶ FINISHED

Cancel and deadline end a QUEUED or HIBERNATED execution at once: there is nothing to stop. A pair that is not in
TRANSITIONS is an error (IllegalTransition), never a silent no-op. Adoption changes no state, and neither does
*unknown*.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class ExecutionState(StrEnum):
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    HIBERNATING = "HIBERNATING"
    HIBERNATED = "HIBERNATED"
    STOPPING = "STOPPING"
    FINISHED = "FINISHED"


class Trigger(StrEnum):
    """What happened. Where the table needs a decision (`retry.decide`), the decision is part of the trigger's name."""

    CLAIMED = "claimed"
    HARNESS_STARTED = "harness_started"
    START_FAILED = "start_failed"  # to be tried again
    START_ABANDONED = "start_abandoned"  # not to be tried again
    PAUSE = "pause"
    RESUME = "resume"
    IDLE = "idle"
    ASK = "ask"
    EXIT_WAITING = "exit_waiting"  # exit code 75
    HIBERNATE = "hibernate"
    CUT = "cut"  # the snapshot is whole and no mail came in between
    MAIL = "mail"  # a message came during HIBERNATING, the harness lives
    MAIL_AFTER_EXIT = "mail_after_exit"  # a message came during HIBERNATING, the harness has exited
    CUT_FAILED = "cut_failed"
    CUT_ABANDONED = "cut_abandoned"
    WAKE = "wake"
    EXITED = "exited"
    OOM = "oom"
    BUDGET = "budget"
    DISK = "disk"  # its files take more than they may
    CANCEL = "cancel"
    DEADLINE = "deadline"
    SANDBOX_LOST = "sandbox_lost"  # another attempt follows
    SANDBOX_ABANDONED = "sandbox_abandoned"  # LOST for good
    STOPPED = "stopped"


S, T = ExecutionState, Trigger

TRANSITIONS: Final[dict[tuple[ExecutionState, Trigger], ExecutionState]] = {
    (S.QUEUED, T.CLAIMED): S.STARTING,
    (S.QUEUED, T.CANCEL): S.FINISHED,
    (S.QUEUED, T.DEADLINE): S.FINISHED,
    #
    (S.STARTING, T.HARNESS_STARTED): S.RUNNING,
    (S.STARTING, T.START_FAILED): S.QUEUED,
    (S.STARTING, T.START_ABANDONED): S.FINISHED,
    (S.STARTING, T.CANCEL): S.STOPPING,
    (S.STARTING, T.DEADLINE): S.STOPPING,
    (S.STARTING, T.SANDBOX_LOST): S.QUEUED,
    (S.STARTING, T.SANDBOX_ABANDONED): S.FINISHED,
    #
    (S.RUNNING, T.PAUSE): S.PAUSED,
    (S.RUNNING, T.IDLE): S.HIBERNATING,
    (S.RUNNING, T.ASK): S.HIBERNATING,
    (S.RUNNING, T.EXIT_WAITING): S.HIBERNATING,
    (S.RUNNING, T.HIBERNATE): S.HIBERNATING,
    (S.RUNNING, T.EXITED): S.STOPPING,
    (S.RUNNING, T.OOM): S.STOPPING,
    (S.RUNNING, T.BUDGET): S.STOPPING,
    (S.RUNNING, T.DISK): S.STOPPING,
    (S.RUNNING, T.CANCEL): S.STOPPING,
    (S.RUNNING, T.DEADLINE): S.STOPPING,
    (S.RUNNING, T.SANDBOX_LOST): S.QUEUED,
    (S.RUNNING, T.SANDBOX_ABANDONED): S.FINISHED,
    #
    (S.PAUSED, T.RESUME): S.RUNNING,
    (S.PAUSED, T.HIBERNATE): S.HIBERNATING,
    (S.PAUSED, T.CANCEL): S.STOPPING,
    (S.PAUSED, T.DEADLINE): S.STOPPING,
    (S.PAUSED, T.SANDBOX_LOST): S.QUEUED,
    (S.PAUSED, T.SANDBOX_ABANDONED): S.FINISHED,
    #
    (S.HIBERNATING, T.CUT): S.HIBERNATED,
    (S.HIBERNATING, T.MAIL): S.RUNNING,
    (S.HIBERNATING, T.MAIL_AFTER_EXIT): S.QUEUED,
    (S.HIBERNATING, T.CUT_FAILED): S.RUNNING,
    (S.HIBERNATING, T.CUT_ABANDONED): S.FINISHED,
    (S.HIBERNATING, T.CANCEL): S.STOPPING,
    (S.HIBERNATING, T.DEADLINE): S.STOPPING,
    (S.HIBERNATING, T.SANDBOX_LOST): S.QUEUED,
    (S.HIBERNATING, T.SANDBOX_ABANDONED): S.FINISHED,
    #
    (S.HIBERNATED, T.WAKE): S.QUEUED,
    (S.HIBERNATED, T.CANCEL): S.FINISHED,
    (S.HIBERNATED, T.DEADLINE): S.FINISHED,
    #
    (S.STOPPING, T.STOPPED): S.FINISHED,
    (S.STOPPING, T.SANDBOX_ABANDONED): S.FINISHED,
}


class IllegalTransition(Exception):
    """A trigger the state's row does not list: a bug in the caller, or a race it had to see."""


def advance(state: ExecutionState, trigger: Trigger) -> ExecutionState:
    """The state after `trigger`. Raises IllegalTransition where the table has no such row."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTransition(f"{state} does not know {trigger}") from None


#: States that have, or may have, a living sandbox.
WITH_SANDBOX: Final = frozenset({S.STARTING, S.RUNNING, S.PAUSED, S.HIBERNATING, S.STOPPING})
#: States in which nobody needs to own the execution until something happens.
ASLEEP: Final = frozenset({S.HIBERNATED, S.FINISHED})
