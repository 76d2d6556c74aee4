"""Named places to die at: `CARREL_CRASH_AT=name` ends the process there as kill -9 would.

For the suite that proves that every one of them is survived. Costs one comparison where nobody asked. Knows nothing of
what happens around it.
"""

from __future__ import annotations

import os
from typing import Final

#: In the order one execution meets them. The suite loops over this; a name that is not here cannot be asked for.
CRASH_POINTS: Final = (
    "after_claim",
    "after_place",
    "after_prepare",
    "after_ensure",
    "after_connect",
    "after_gate",
    "after_start",
    "before_started_append",
    "after_started_append",
    "before_relay_append",
    "after_relay_append",
    "after_relay_ack",
    "before_message",
    "after_message",
    "before_interrupt",
    "before_exit_append",
    "after_exit_append",
    "after_stopping",
    "after_terminate",
    "after_kill",
    "after_artifacts",
    "before_finish_append",
    "after_finish_append",
    "after_remove",
    "before_lost_append",
    "after_lost_append",
    "before_freeze",
    "after_freeze",
    "after_quiesce",
    "after_snapshot",
    "before_thaw",
    "after_thaw",
    "before_snapshot_append",
    "after_snapshot_append",
    "after_hibernating",
    "before_cut_append",
    "after_cut_append",
    "after_archive_layer",
    "after_archive_manifest",
    "after_archived",
    "after_history_archived",
    "after_fetch",
)

_chosen: Final = os.environ.get("CARREL_CRASH_AT", "")
if _chosen and _chosen not in CRASH_POINTS:
    raise SystemExit(f"CARREL_CRASH_AT={_chosen}: no such crash point; there are {', '.join(CRASH_POINTS)}")


def crash_point(name: str) -> None:
    """Die here, at once and without any cleaning up, if this place was asked for."""
    if name == _chosen:
        os._exit(137)
