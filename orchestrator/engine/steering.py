"""The inbox to the harness's stdin, in order, with a bounded window: what was sent and has no receipt yet.

The receipts are frames and so the relay's matter. init keeps the order and drops what it was sent before, so sending
again after a broken line is always right.
"""

from __future__ import annotations

from typing import Final

from orchestrator import events
from orchestrator.engine.crash_point import crash_point
from orchestrator.engine.environment import input_of
from orchestrator.engine.reading import Reading
from orchestrator.engine.scribe import Scribe
from orchestrator.events import Entry
from orchestrator.execution import StdinMode
from orchestrator.history import Change, History
from orchestrator.link import OwnerLink, Refusal

WINDOW: Final = 64  # messages sent without a receipt
_EXPIRE_AT_ONCE: Final = 1000


class Steering:
    """Of one attempt in one epoch. `tail` is the newest message known to be there."""

    def __init__(self, history: History, scribe: Scribe, reading: Reading, mode: StdinMode, execution_id: str) -> None:
        self.tail = 0
        self.closed = False  # the harness closed its stdin, or has ended
        self._history = history
        self._scribe = scribe
        self._reading = reading
        self._mode = mode
        self._execution_id = execution_id
        self._sent = 0
        self._received = 0
        self._full_until = 0  # init's queue is full until this message has its receipt

    def greeted(self, accepted: int, received: int) -> None:
        """A new line, and how far init has come: taken, and written to the harness."""
        self._sent = accepted
        self._received = received
        self._full_until = 0

    def received(self, n: int) -> None:
        """A receipt came."""
        self._received = max(self._received, n)

    def refused(self, refusal: Refusal) -> None:
        """init did not take a message."""
        if refusal.code == "out_of_order":
            self._sent = int(refusal.fields.get("expected", 1)) - 1
        elif refusal.code == "inbox_full":
            self._sent = int(refusal.fields.get("n", 1)) - 1
            self._full_until = self._received + 1
        elif refusal.code in ("stdin_closed", "stdin_none", "ended", "lost"):
            self.closed = True

    @property
    def wants_to_send(self) -> bool:
        """True when there is something to send and room for it."""
        if self.closed or self._mode == "none" or self._sent >= self.tail:
            return False
        return self._sent - self._received < WINDOW and self._received >= self._full_until

    async def send(self, link: OwnerLink) -> None:
        """What fits the window. Raises LinkLost, StoreUnavailable."""
        room = WINDOW - (self._sent - self._received)
        messages = await self._history.inbox(self._execution_id, self._sent, limit=room)
        if not messages:
            self.tail = self._sent  # it was the record's word against the inbox's: look again at the next bell
        for message in messages:
            crash_point("before_message")
            self._reading.know(message.id, message.n)
            await link.message(message.n, message.id, input_of(message, self._mode))
            crash_point("after_message")
            self._sent = message.n
        self.tail = max(self.tail, self._sent)

    async def expire(self, why: str, settled: int) -> tuple[list[Entry], int]:
        """Receipts for all messages after `settled`, that never reached a harness. Full pages of them are written
        here; the rest is answered for the caller's own append, with the number of the last."""
        while True:
            messages = await self._history.inbox(self._execution_id, settled, limit=_EXPIRE_AT_ONCE)
            entries = [
                Entry(events.MESSAGE_EXPIRED, {"n": message.n, "id": message.id, "why": why}) for message in messages
            ]
            if messages:
                settled = messages[-1].n
            if len(messages) < _EXPIRE_AT_ONCE:
                return entries, settled
            await self._scribe.write(entries, Change(delivered=settled))
