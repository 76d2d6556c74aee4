"""The port of the journal of intents: what a harness is about to do outside itself, told before it is done. Knows no
Redis, no HTTP and nothing of what the calls are.

An intent has a key the harness chose: the same call has the same key in every attempt. Whoever begins one learns
whether to go ahead; so what was done is skipped, what may have been done is left in doubt and shown so, and nothing
happens twice because nobody remembered. The journal lives with the execution's record, outside its workspace: after
a restore from an older cut it still knows what lies past it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from orchestrator.history import Lease

KEY_BYTES: Final = 256  # of UTF-8, printable
WORD_BYTES: Final = 128  # run, kind, digest, by: the same
SUMMARY_BYTES: Final = 4096
RESULT_BYTES: Final = 64 * 1024
INTENTS: Final = 100_000  # of one execution
JOURNAL_BYTES: Final = 64 << 20  # of one execution, all entries and results; no new one beyond it


class Effect(StrEnum):
    """What running it twice would do. `unknown` and `once` are never run again unless a person says so."""

    NONE = "none"
    IDEMPOTENT = "idempotent"
    ONCE = "once"
    UNKNOWN = "unknown"


class IntentState(StrEnum):
    """open ──finish──▶ done | failed;  open ──begun by another run, or its attempt is over──▶ in_doubt
    ──settle──▶ retry (the next begin goes ahead) | done | failed. The run that began it may finish it as long as nobody
    else has it and nobody decided how it ended: it knows."""

    OPEN = "open"
    DONE = "done"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    RETRY = "retry"


class Decision(StrEnum):
    """What a person says of an intent in doubt: run it again; it was done, with this result; count it as failed."""

    RETRY = "retry"
    DONE = "done"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Intent:
    """One entry. `digest`: of what would be run, so that a key cannot mean two things. `run`: which running process
    began it (a resent request has the same one). `n`: its place in the journal, from 1. `result`: text the harness
    or the person left."""

    key: str
    kind: str  # bash, write, edit, command, …: the harness's word
    effect: Effect
    summary: str
    digest: str
    attempt: int
    run: str
    n: int
    state: IntentState
    begun_at: datetime
    ended_at: datetime | None = None
    result: str = ""
    settled_by: str = ""  # the decision's author; "" = nobody had to


@dataclass(frozen=True, slots=True)
class Begun:
    """`go`: do it now. Otherwise `intent.state` says why not: done or failed (with its result), in_doubt."""

    go: bool
    intent: Intent


class Intents(Protocol):
    """All methods raise StoreUnavailable when the store does not answer; all are safe to ask again."""

    async def begin(
        self, lease: Lease, *, attempt: int, key: str, run: str, kind: str, effect: Effect, summary: str, digest: str
    ) -> Begun:
        """Write the intent, with its `intent.recorded`, before it is acted on; durable when this returns.

        There already: open and begun by this `run` of this attempt → go (it was asked twice); done, failed → not again;
        settled `retry` → go; open from another run → go where the effect, as told then and now, is none or idempotent,
        else in_doubt, with one `intent.in_doubt`; in doubt stays so, for every run. Each go to another run writes
        `intent.recorded`.
        Raises Fenced (also for an attempt that is over), KeyReused (same key, other digest), TooMany (INTENTS,
        JOURNAL_BYTES), BadInput (the bounds above)."""

    async def finish(self, lease: Lease, *, key: str, run: str, ok: bool, result: str) -> Intent:
        """Write how it ended, with its `intent.done`. Finished already: nothing changes, and the intent as it is comes
        back. Raises Fenced, NotFound, Conflict (another run holds it now), BadInput."""

    async def get(self, execution_id: str, key: str) -> Intent:
        """As `list` reads it. Raises NotFound."""

    async def list(
        self, execution_id: str, *, states: frozenset[IntentState] = frozenset(), after: int = 0, limit: int = 100
    ) -> Sequence[Intent]:
        """In the order of `n`, those with n > after. An open one whose attempt is over reads as in_doubt (unless its
        effect is none or idempotent). Raises NotFound for the execution."""

    async def last(self, execution_id: str) -> int:
        """The `n` of the newest intent; 0 = none."""

    async def settle(self, execution_id: str, key: str, decision: Decision, *, result: str, by: str) -> Intent:
        """A person's decision on one in doubt (as `list` reads it); in every state of the execution. Rings its owner,
        with one `intent.settled`; after FINISHED, where nothing follows the history's end, only the journal changes.
        The same decision again: nothing changes. Raises NotFound, Conflict (it is not in doubt), BadInput."""
