"""The port between the front and the way out to other hosts. Knows neither how a connection came nor who may pass.

The front has read a request's head and seen that it is meant for a proxy; from there on the connection is the egress
proxy's: it reads what follows, writes every byte of the answer, refusals included, and returns. The front closes.
"""

from __future__ import annotations

from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.execution import Execution
from orchestrator.gateways import Tell


@dataclass(frozen=True, slots=True)
class Head:
    """A request's head, as it was sent. `target`: what stood in the request line, nothing decoded. `headers`: names in
    lower case, in their order, repeated ones as often as they came."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    version: str = "1.1"

    def header(self, name: str) -> str:
        """The first of this name (lower case), "" = there is none."""
        return next((value for known, value in self.headers if known == name), "")


class Egress(Protocol):
    """The proxy of one sandbox. Its two verbs return when the exchange is over, raise nothing but cancellation, and
    leave `writer` open; whatever else they opened is closed by then."""

    async def tunnel(self, head: Head, reader: StreamReader, writer: StreamWriter, leftover: bytes) -> None:
        """CONNECT. `leftover`: what came behind the head; the first bytes of the tunnel."""

    async def forward(self, head: Head, body: AsyncIterator[bytes], reader: StreamReader, writer: StreamWriter) -> None:
        """Plain HTTP in absolute form; one exchange. `body`: without its framing, read from the connection as it is
        asked for; raises ValueError where the framing breaks. `reader` is for nothing but seeing that the client went,
        once the body is over."""

    def update(self, execution: Execution) -> None:
        """The record was read again: from now on its allowlist (`execution.egress`) counts. Open tunnels to names
        that are not allowed any more are closed."""

    async def close(self) -> None:
        """Close every tunnel. Idempotent."""


class Egresses(Protocol):
    """Opens them."""

    def open(self, execution: Execution, *, tell: Tell, held: Callable[[], bool]) -> Egress:
        """For one gateway. `held`: as in `Gateways.open`; False = nothing passes."""

    def carried(self) -> tuple[int, int]:
        """Bytes out of and into all sandboxes so far."""
