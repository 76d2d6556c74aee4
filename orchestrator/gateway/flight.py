"""One model call under way, and everybody who waits for its answer: each gets it from its first byte. Knows no HTTP and
no store.

A flight opens when it is known how the answer will come, in one of three ways: whole (from the record, or not
streamed), flowing, or not at all. What flows is kept until the end, as it may be a record and as somebody may join. An
answer too long for a record is not: then nobody can join any more, what all have is dropped, and whoever is slowest
sets the pace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.calls import Answer
from orchestrator.gateway.refusals import Refused

_WINDOW: Final = 64  # pieces a flight that is not kept may be ahead of its slowest reader


@dataclass(frozen=True, slots=True)
class Whole:
    """`replayed`: it comes from the record."""

    answer: Answer
    replayed: bool


@dataclass(frozen=True, slots=True)
class Flowing:
    """`streamed`: server-sent events."""

    status: int
    headers: Mapping[str, str]
    streamed: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider's own error, as it goes to the client."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """This gateway answers no more: the connection closes without a byte, and the outlet asks whoever comes next."""


Opening = Whole | Flowing | Failed | Refused | Withdrawn


@dataclass(frozen=True, slots=True)
class Piece:
    """`spare`: only for a client that asked for it."""

    data: bytes
    spare: bool = False


class BrokenOff(Exception):
    """What flowed came to no end. `why` is for people; "" = say nothing, break."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Flight:
    """`call`: its name in the record, once it has one. `answer`: once it is whole, if it was kept."""

    def __init__(self) -> None:
        self.call = ""
        self.answer: Answer | None = None
        self.opened: asyncio.Future[Opening] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()
        self.kept = True
        self._broken: str | None = None
        self._pieces: list[Piece] = []
        self._dropped = 0
        self._places: dict[object, int] = {}
        self._news = asyncio.Event()
        self._deserted = asyncio.Event()

    # ---- for who makes the call

    @property
    def wanted(self) -> bool:
        """Somebody waits."""
        return bool(self._places)

    async def deserted(self) -> None:
        """Returns when nobody waits any more."""
        await self._deserted.wait()

    def open(self, how: Opening) -> None:
        if not self.opened.done():
            self.opened.set_result(how)

    async def put(self, piece: Piece) -> None:
        """For everybody. Waits only where nothing is kept."""
        self._pieces.append(piece)
        self._wake()
        while not self.kept and self._places and self._end - min(self._places.values()) > _WINDOW:
            await self._news.wait()
        if not self.kept:
            self._drop()

    def let_go(self) -> None:
        """It is too long for a record: keep no more than is on its way."""
        self.kept = False
        self._drop()

    def land(self, answer: Answer | None) -> None:
        """It is whole, and recorded if it can be."""
        self.answer = answer
        self._end_it()

    def crash(self, why: str) -> None:
        """It will never be whole."""
        self._broken = why
        self._end_it()

    def _end_it(self) -> None:
        self.ended.set()
        self.open(Refused(502, "broken_off", self._broken or "the answer broke off"))
        self._wake()

    # ---- for who waits

    def join(self) -> object:
        """A seat, to be left again."""
        seat = object()
        self._places[seat] = self._dropped
        self._deserted.clear()
        return seat

    def leave(self, seat: object) -> None:
        if self._places.pop(seat, None) is not None and not self._places:
            self._deserted.set()
        self._wake()

    async def pieces(self, seat: object) -> AsyncIterator[list[Piece]]:
        """All that are there at once, from the first one on, to the end. Raises BrokenOff."""
        while True:
            place = self._places[seat]
            if place < self._end:
                there = self._pieces[place - self._dropped :]
                yield there
                self._places[seat] = place + len(there)
                if not self.kept:
                    self._wake()
                continue
            if self.ended.is_set():
                if self._broken is not None:
                    raise BrokenOff(self._broken)
                return
            await self._news.wait()

    @property
    def _end(self) -> int:
        return self._dropped + len(self._pieces)

    def _drop(self) -> None:
        least = min(self._places.values(), default=self._end)
        del self._pieces[: least - self._dropped]
        self._dropped = least

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
