"""The port of everything a store knows, on its way into a backup and out of one. Knows no file and no Redis.

A *line* is one JSON object. What a backup means is the store's own: a line is handed back as it was given out, in the
order it was given out, to a store of the same schema. Bytes are text by surrogateescape, so that any come back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Protocol

Line = Mapping[str, Any]

#: The kinds of line (`of`) that others than the store look into.
EXECUTION: Final = "execution"  # id, record: the store's own fields
SNAPSHOT: Final = "snapshot"  # id, fields: the store's own; those of the port are `host`, `digest`, `archived`
#: Roughly so many bytes of a history are in one line; a single event may be larger.
LINE_BYTES: Final = 512 << 10


class Dump(Protocol):
    """Reads. Takes no lock and stops nobody: page by page, one at a time."""

    def lines(self) -> AsyncIterator[Line]:
        """Everything: tokens, streams, executions, snapshots. Each execution is as it stood at one moment: its record,
        its history up to the record's tail, its inbox, its journal, its snapshots. Not every one at the same moment:
        what was made after this began may be missing. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of what was read. `resumes`: it begins another attempt from its last snapshot; `lost`: it ended LOST,
    with the reason; `waits`: it waits or sleeps as before. All by id."""

    finished: int
    waits: tuple[str, ...] = ()
    resumes: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()


class Load(Protocol):
    """Writes what a Dump gave out. All of it may be done again, in any state a crash left: the same backup goes on."""

    async def begin(self, backup: str, *, host_was: str, host: str, quiet_s: float) -> None:
        """From here on, until `finish`, no worker and no api of this store starts and nothing is claimed. What was on
        `host_was` is on `host` from now on. Waits `quiet_s` seconds to see that nobody works on it, where anybody ever
        did. Raises Conflict: it holds executions, snapshots or streams already; another backup is half restored; a
        worker lives."""

    async def add(self, line: Line, *, files: Collection[str]) -> None:
        """One line. `files`: snapshots whose files are on this host, or come with the backup: one that says it is here
        and is not is left out. Raises BadInput for a line nobody knows."""

    async def finish(self, *, taken_at: datetime) -> Loaded:
        """Everything is there now. What was alive begins again, under a new generation of its history and an epoch
        above any that was given since: from its last snapshot where its policy says so, else it ends LOST."""
