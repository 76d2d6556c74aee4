"""The port of the record of model calls: reserve before, settle after, replay for ever. Knows no Redis, no HTTP and no
provider.

A call is begun before it is made and finished when its answer is whole; a finished one is never made again: whoever
asks the same gets the recorded answer, which costs nothing. Two names for "the same": with an Idempotency-Key, the key
and the body's digest, in any attempt; without, the digest and the how-manieth time this attempt asks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from orchestrator.execution import Spend
from orchestrator.history import Lease

RECORD_BYTES: Final = 8 << 20  # of one answer; a longer one is passed through and not recorded
RECORDS_BYTES: Final = 256 << 20  # of all answers of one execution as the store keeps them; the same beyond it


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What one call cost. `input_tokens` without those read from or written to a cache. `estimated`: the provider did
    not say; counted by us."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_micros: int = 0
    estimated: bool = False

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer as it went to the client: decoded of any content coding. `streamed`: the body is server-sent
    events. `headers`: those worth telling again (content-type, request-id), lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    streamed: bool


@dataclass(frozen=True, slots=True)
class Replay:
    """It was answered before."""

    call: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class Reserved:
    """Make it now. `call` names it from here on."""

    call: str
    spend: Spend


@dataclass(frozen=True, slots=True)
class OverBudget:
    """Not to be made: `spend`, and what it would need, are more than the budget. The refusal is in the history."""

    spend: Spend
    needed_micros: int
    needed_tokens: int
    limit_micros: int | None
    limit_tokens: int | None
    wait: bool  # the budget says: hold it until it is raised


@dataclass(frozen=True, slots=True)
class Asked:
    """What is about to be asked. `key`: the Idempotency-Key, "" = none. `reserve`: the most it can cost. `if_cut`: what
    it counts for when its answer breaks off. `facts`: of its `usage` event (api, provider, model)."""

    digest: str
    key: str
    reserve: ModelUsage
    if_cut: ModelUsage
    facts: Mapping[str, Any] = field(default_factory=dict)


class Calls(Protocol):
    """All methods raise StoreUnavailable when the store does not answer, NotFound for an execution or a call that is
    not there, and Fenced when another epoch owns the execution or it has ended; all are safe to ask again.
    Single-flight is the caller's: it never begins one name twice at once.

    What its end leaves reserved is settled by the store, as `recover` does; the answers go then."""

    async def recover(self, lease: Lease) -> int:
        """Settle what earlier epochs left reserved, each as its `if_cut`, with one `model.cut`. How many. To be called
        once, before the first `begin` of an epoch."""

    async def begin(self, lease: Lease, attempt: int, asked: Asked) -> Replay | Reserved | OverBudget:
        """A Replay counts in `spend.replays` and writes its `usage` (replayed, cost 0, the tokens as recorded).

        Reserved: spent, reserved and `reserve` together are within the budget. OverBudget: they are not; writes
        `budget.exceeded` once per budget, sets `over_budget` in the record and rings the owner. One that is held is
        begun again once the budget was changed or another call has ended; if it is then Reserved, `over_budget` is
        taken back. Under way already: Reserved, the same call."""

    async def finish(
        self, lease: Lease, call: str, answer: Answer | None, usage: ModelUsage, facts: Mapping[str, Any]
    ) -> Spend:
        """Settle the reservation and record the answer, with its `usage`, in one step. `answer` None: an error or one
        too long (RECORD_BYTES, RECORDS_BYTES), which is not recorded; asked again it is made again. Ended already, in
        whatever way: nothing changes."""

    async def cut(self, lease: Lease, call: str, usage: ModelUsage, why: str) -> Spend:
        """The answer broke off: settle at what was seen, with its `model.cut`; asked again it is made again."""

    async def cancel(self, lease: Lease, call: str) -> Spend:
        """It never reached the provider: the reservation is given back."""

    async def delivered(self, lease: Lease, attempt: int, call: str) -> None:
        """The client has the whole answer: without a key, the next one of this digest is another occurrence."""
