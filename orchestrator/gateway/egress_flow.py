"""One connection's traffic: counted, ended when idle, when its lease is gone or when it is not allowed any more.

Knows neither HTTP nor TLS nor what is allowed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

IDLE_S: Final = 900.0
HALF_CLOSED_IDLE_S: Final = 120.0  # one side has said all it will
CHUNK_BYTES: Final = 64 * 1024


@dataclass(slots=True)
class Traffic:
    """Bytes of one sandbox that went through, both ends' own framing included; each counts in `whole` as well."""

    out_bytes: int = 0
    in_bytes: int = 0
    whole: Traffic | None = None

    def sent(self, size_bytes: int) -> None:
        """Out of the sandbox."""
        self.out_bytes += size_bytes
        if self.whole is not None:
            self.whole.sent(size_bytes)

    def received(self, size_bytes: int) -> None:
        """Into the sandbox."""
        self.in_bytes += size_bytes
        if self.whole is not None:
            self.whole.received(size_bytes)


class Cut(Exception):
    """The connection is to end now; says why. Nothing is wrong with the other side."""


@dataclass(eq=False, slots=True)
class Flow:
    """`host` is canonical; port 0 and host "" until they are known."""

    traffic: Traffic
    held: Callable[[], bool]
    host: str = ""
    port: int = 0
    idle_s: float = IDLE_S
    cut_why: str = ""
    over: asyncio.Event = field(default_factory=asyncio.Event)
    limit: asyncio.Timeout = field(init=False)

    def __post_init__(self) -> None:
        self.limit = asyncio.timeout(self.idle_s)

    def sent(self, size_bytes: int) -> None:
        """Out of the sandbox. Raises Cut."""
        self.traffic.sent(size_bytes)
        self._moved()

    def received(self, size_bytes: int) -> None:
        """Into the sandbox. Raises Cut."""
        self.traffic.received(size_bytes)
        self._moved()

    def half_closed(self) -> None:
        """One direction is over: the other may not be idle as long."""
        self.idle_s = min(self.idle_s, HALF_CLOSED_IDLE_S)
        self._moved()

    def cut(self, why: str) -> None:
        """End it, whatever it waits for: inside `limit` that is a TimeoutError."""
        self.cut_why = self.cut_why or why
        self._reschedule(0.0)

    def _moved(self) -> None:
        if not self.held():
            self.cut_why = self.cut_why or "this worker may not own the execution any more"
        if self.cut_why:
            raise Cut(self.cut_why)
        self._reschedule(self.idle_s)

    def _reschedule(self, in_s: float) -> None:
        if not self.limit.expired():
            self.limit.reschedule(asyncio.get_running_loop().time() + in_s)
