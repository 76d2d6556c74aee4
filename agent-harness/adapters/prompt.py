"""The first words of an attempt: the task, or how things stand after a restart. Pure."""

from __future__ import annotations

from collections.abc import Mapping

INTERRUPTED = (
    "[Carrel] Your sandbox was lost while you were working and has been made anew. Your files are as they were; every "
    "process that ran is gone."
)
IN_DOUBT = (
    "These calls had begun and their end is not known. Each may have run wholly, partly or not at all; none was run "
    "again:"
)
CHECK = "Check what is there before you repeat any of them."
GO_ON = "Go on with the task."


def first_words(task: str, *, resumed: bool, remembers: bool, calls: Mapping[str, str]) -> str:
    """`resumed`: there was an attempt before. `remembers`: the program goes on in its own session, so that the task
    need not be said again. `calls`: id → title of those in doubt."""
    if not resumed:
        return task
    words = [INTERRUPTED]
    if calls:
        words += ["", IN_DOUBT, *(f"- {title}" for title in calls.values()), CHECK]
    return "\n".join([*words, "", GO_ON] if remembers else [*words, "", "The task:", task])
