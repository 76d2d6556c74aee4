"""The event vocabulary, and what an event is. Knows nothing of how events are stored or sent.

Harness events take the Agent Client Protocol's names; the platform's own are `execution.*`, `sandbox.*`, `message.*`,
`usage`, `model.*`, `budget.*`, `egress.*`, `intent.*`, `snapshot.*`, `history.*`. Only
events whose `source` is "platform" count for money and outcome: what a harness prints can never pass for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

Source = Literal["platform", "harness"]

#: Types a harness may send as JSONL; any other `type` is demoted to `output`.
HARNESS_TYPES: Final = frozenset(
    {
        "user_message",
        "agent_message_chunk",
        "agent_thought_chunk",
        "tool_call",
        "tool_call_update",
        "plan",
        "usage_update",
        "compaction",
        "progress",
        "artifact",
        "ask",
        "ack",
        "output",
        "error",
        "result",
    }
)

OUTPUT: Final = "output"  # data: {stream}; body: the bytes
SUBMITTED: Final = "execution.submitted"
STATE: Final = "execution.state"  # data: {from, to, trigger, …}: every transition, one event
ADOPTED: Final = "execution.adopted"  # data: {owner, epoch}
FINISHED: Final = "execution.finished"  # data: {outcome}: the last event
WANTED: Final = "execution.wanted"  # data: {want, id, …}: a wish was recorded (egress, budget: `*.changed` says it)
INTERRUPTED: Final = "execution.interrupted"  # data: {id}: SIGINT was delivered
EXITED: Final = "execution.exited"  # data: {exit_code | signal}: the harness's own end
SANDBOX_PLACED: Final = "sandbox.placed"  # data: {sandbox_id, host}
SANDBOX_RESIZED: Final = "sandbox.resized"  # data: {id, result, cpus, memory_bytes, pids, measured}
SANDBOX_LOST: Final = "sandbox.lost"  # data: {reason, detail}; of a killed harness, in_a_row: without a new step
SANDBOX_OOM: Final = "sandbox.oom"  # data: {kills}: something in it was killed for memory; the run goes on
SANDBOX_HELD: Final = "sandbox.held"  # data: {spool_bytes}: the harness waits, the spool is at its limit
MESSAGE_ACCEPTED: Final = "message.accepted"  # data: {n, id, text | data_b64}
MESSAGE_DELIVERED: Final = "message.delivered"  # data: {n, id}
MESSAGE_CONSUMED: Final = "message.consumed"  # data: {n, id}
MESSAGE_EXPIRED: Final = "message.expired"  # data: {n, id, why}
ARTIFACT: Final = "artifact"  # data: {path, size_bytes, sha256 | refused}: kept, or why not
# data: {call, api, provider, model, input_tokens, output_tokens, …, cost_micros, replayed}: of a replay the tokens are
# those of the recorded answer, and cost nothing
USAGE: Final = "usage"
MODEL_CUT: Final = "model.cut"  # data: {call, epoch, cost_micros, …tokens, why}: the answer broke off
MODEL_REFUSED: Final = "model.refused"  # data: {api, model, status, code, why}
# data: {spent_, reserved_, needed_, limit_} × {micros, tokens} (limit null = none), on_exceeded, api, model, …
BUDGET_EXCEEDED: Final = "budget.exceeded"
BUDGET_CHANGED: Final = "budget.changed"  # data: {id, micros, tokens, on_exceeded}
EGRESS_REFUSED: Final = "egress.refused"  # data: {host, port, why}
EGRESS_CHANGED: Final = "egress.changed"  # data: {id, allow}
INTENT_RECORDED: Final = "intent.recorded"  # data: {key, kind, effect, summary, run, n}: before it is done
INTENT_DONE: Final = "intent.done"  # data: {key, state: done | failed}
INTENT_IN_DOUBT: Final = "intent.in_doubt"  # data: {key, kind, effect, summary, attempt}
INTENT_SETTLED: Final = "intent.settled"  # data: {key, decision, by}
SNAPSHOT_CREATED: Final = "snapshot.created"  # data: {id, why, name, cut: {attempt, seq, src, inbox, intents}, parent}
SNAPSHOT_FAILED: Final = "snapshot.failed"  # data: {id, why, error}: the work goes on
SNAPSHOT_RESTORED: Final = "snapshot.restored"  # data: {id, attempt, inbox_base}
SNAPSHOT_CORRUPT: Final = "snapshot.corrupt"  # data: {id, detail, instead}: the one before it is used
# data: {id, name, why: asked | policy | prune | files_gone}: nobody can go back there any more
SNAPSHOT_REMOVED: Final = "snapshot.removed"
FORKED: Final = "execution.forked"  # data: {from, snapshot, seq, rewind}: the second event of a fork
# data: {taken_at, generation_before, state, attempt, snapshot}: what came after `taken_at` is not in this history
RESTORED: Final = "execution.restored"
HISTORY_GAP: Final = "history.gap"  # data: {attempt, first_src, last_src, why}


@dataclass(frozen=True, slots=True)
class Entry:
    """An event that has no number yet. `src` = the frame it came from, 0 = the worker's own. Times: epoch ms."""

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)
    body: bytes | None = None  # only `output`: the bytes exactly as printed
    source: Source = "platform"
    src: int = 0
    time_ms: int = 0  # 0 = the store's clock at append


@dataclass(frozen=True, slots=True)
class Event:
    """One numbered entry of a history. `seq` is contiguous from 1 within `generation`."""

    seq: int
    type: str
    time: datetime
    attempt: int
    source: Source
    data: Mapping[str, Any]
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Cursor:
    """A reader's place: everything up to and including `seq` was seen. Binds to the execution's id and generation."""

    generation: int = 1
    seq: int = 0

    def __str__(self) -> str:
        """The offset of the Durable Streams protocol: two numbers of 16 digits."""
        return f"{self.generation:016d}_{self.seq:016d}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The inverse of str(). Raises ValueError."""
        generation, _, seq = text.partition("_")
        if not (len(generation) == len(seq) == 16 and generation.isascii() and seq.isascii()):
            raise ValueError(f"not a cursor: {text!r}")
        if not (generation.isdigit() and seq.isdigit()):
            raise ValueError(f"not a cursor: {text!r}")
        return cls(int(generation), int(seq))
