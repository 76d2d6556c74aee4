"""What to do about a call that an earlier life of this harness left: rules 1–5 of the contract, as a table. Looks at
the call's folder and the file; does nothing about it.

    1  its result is in the journal          skip it            (the fold does: such a call is not open any more)
    2  an intent, and how it ended           recover that
    3  an intent, and it still runs          re-attach
    4  an intent, and neither                in doubt; run again only where that does no harm
    5  no intent, or it certainly never ran  run it
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from agent_harness.calls import Call
from agent_harness.journal import Record
from agent_harness.tools.files import digest_of


class Rule(Enum):
    RECOVER = 2
    REATTACH = 3
    DOUBT = 4
    RUN = 5


HARMLESS = frozenset({"none", "idempotent"})  # effects of what may be run again


def of_command(intent: Record | None, call: Call) -> Rule:
    """`call`: the folder the intent names."""
    if intent is None:
        return Rule.RUN
    if call.ending() is not None:
        return Rule.RECOVER
    if call.alive():
        return Rule.REATTACH
    if call.ending() is not None:  # it ended while we looked
        return Rule.RECOVER
    # A wrapper takes `pid` before it starts anything: if we can have it, none did, and none will.
    return Rule.RUN if call.never_ran() else Rule.DOUBT


def of_change(intent: Record | None) -> Rule:
    """A write or an edit: the file itself says how far it came. Raises ToolError where it is no file any more."""
    if intent is None:
        return Rule.RUN
    now = digest_of(Path(intent["path"]))
    if now == intent["after"]:
        return Rule.RECOVER
    return Rule.RUN if now == intent["before"] else Rule.DOUBT
