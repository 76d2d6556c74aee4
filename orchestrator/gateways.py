"""The port of the gateway: the only way out of a sandbox. Knows neither what is behind it nor who may pass.

One gateway is open for each attempt a worker owns; it listens on a unix socket in the sandbox's slot, to which init's
outlet carries what programs inside send to 127.0.0.1:OUTLET_PORT. A connection carries one exchange. Another worker
that takes over opens its own at the same path; a request that has no byte of an answer yet goes there by itself.

So a gateway says a byte before it does what must not happen twice: an interim `100 Continue` is one, and every HTTP/1.1
client takes it. And what it says has a length or is chunked: a killed worker's socket closes as an orderly one does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

from orchestrator.events import Entry
from orchestrator.execution import Execution
from orchestrator.history import Lease

OUTLET_PORT: Final = 7411  # inside the sandbox, whose network namespace nobody shares

Tell = Callable[[Entry], Awaitable[None]]
"""Writes an event of the platform's into the history; returns when it is there. Raises Fenced, StoreUnavailable."""


class Gateway(Protocol):
    """Open for one attempt."""

    @property
    def busy(self) -> bool:
        """A model call is under way, whether or not its client is still there."""

    def update(self, execution: Execution) -> None:
        """The record was read again: allowlist and budget as they are now."""

    async def close(self, *, grace_s: float) -> None:
        """Take nothing new; model calls under way have `grace_s`; then every connection is closed. Idempotent."""


class Gateways(Protocol):
    """Opens them."""

    def environment(self, execution: Execution) -> Mapping[str, str]:
        """What programs inside need to find it: base URLs, the execution's own token, MODEL, MODEL_API, proxies. The
        same for every attempt of one execution on this installation; holds no secret of anybody else's."""

    def counted(self) -> Mapping[str, int]:
        """What this process counts, each figure from its begin on; names as in `executions.COUNTERS`."""

    async def open(
        self, lease: Lease, execution: Execution, at: Path, *, tell: Tell, held: Callable[[], bool]
    ) -> Gateway:
        """Listen at `at`, in place of whoever did. `held`: False once the lease may have run out by this worker's own
        clock; then every request is refused. Raises Fenced, StoreUnavailable."""
