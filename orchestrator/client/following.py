"""A history followed through any number of broken connections: no gap, no repeat, an explicit end. Knows no network.

The only state is the place. A connection that breaks, stalls or ends without saying "closed" is opened again after the
last event that was handed out. What is handed out is contiguous by construction: a number seen before is dropped, a
number missing closes the connection and asks again from there; if it is missing twice at the same place, that is an
error and not silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from orchestrator.client import answers, calls, requests, sse
from orchestrator.client.exchange import Emit, Failure, Open, Read, Response, Sleep, Stream
from orchestrator.client.patience import Patience
from orchestrator.errors import BadInput, CarrelError, Gone
from orchestrator.events import Cursor, Event


@dataclass(frozen=True, slots=True)
class Batch:
    """What one read of the connection brought. `cursor` = the place right after `events`. `up_to_date`: everything
    that exists was handed out. `closed`: it has ended, for ever; nothing follows this batch."""

    events: tuple[Event, ...]
    cursor: str
    up_to_date: bool = False
    closed: bool = False


class Again(Exception):
    """This connection is of no more use; the message says why."""


@dataclass(slots=True)
class Place:
    """Where a reader stands. `after`: "" (the start), a seq, or a cursor; `tail` beats it until the first event came.
    Raises BadInput(field="after")."""

    execution: str
    after: str
    tail: int | None
    cursor: str = field(init=False)
    last: int | None = field(init=False)  # seq of the last event handed out; None = any number may come first
    _generation: int | None = None
    _missing_at: int | None = None

    def __post_init__(self) -> None:
        self.cursor = self.after or "0"
        try:
            if self.cursor.isdigit():
                self.last = int(self.cursor)
            else:
                start = Cursor.parse(self.cursor)
                self.last, self._generation = start.seq, start.generation
        except ValueError:
            raise BadInput(
                f"not a place in a history: {self.after!r}",
                field="after",
                limit="an event's number, or a cursor as events and records carry it",
                remedy="leave it out for the start",
            ) from None
        if self.tail is not None:
            self.last = None

    def take(self, events: Sequence[Event]) -> tuple[Event, ...]:
        """Those that come next, in order. Raises Again at a number that is missing, Gone when it stays missing."""
        taken: list[Event] = []
        for event in events:
            if self.last is not None:
                if event.seq <= self.last:
                    continue
                if event.seq > self.last + 1:
                    if taken:
                        break  # hand out what is whole; the next one finds the hole again
                    self._missing(event.seq)
            taken.append(event)
            self.last = event.seq
            self.cursor = str(event.seq if self._generation is None else Cursor(self._generation, event.seq))
            self.tail = None
        return tuple(taken)

    def move(self, cursor: str) -> None:
        """The server's own word for where we are: it also names the generation."""
        if cursor:
            try:
                there = Cursor.parse(cursor)
            except ValueError:
                raise answers.not_ours(f"cursor {cursor!r}") from None
            if self.last is None or there.seq == self.last:
                self.cursor, self.last, self.tail = cursor, there.seq, None
                self._generation = there.generation

    def _missing(self, seq: int) -> None:
        assert self.last is not None
        if self._missing_at == self.last:
            raise Gone(
                f"the history of {self.execution} lacks numbers {self.last + 1} to {seq - 1}: this is a bug of the"
                " server",
                earliest=seq,
            )
        self._missing_at = self.last
        raise Again(f"event {self.last + 1} is missing; asking again")


def _batch(place: Place, messages: Sequence[sse.ServerSent]) -> Batch:
    """Raises Gone, another error the server sent, or Again."""
    events: list[Event] = []
    cursor = ""
    up_to_date = closed = False
    for message in messages:
        match message.event:
            case "event":
                events.append(answers.event(message.data))
                cursor = message.id
            case "gap":
                shape = _object(message.data)
                raise Gone(f"a part of the history of {place.execution} is not there any more", **shape)
            case "up_to_date":
                up_to_date, cursor = True, message.id or cursor
            case "closed":
                closed, cursor = True, message.id or cursor
            case "error":
                raise answers.error(_object(message.data))
            case _:
                pass  # of a later version
    taken = place.take(events)
    whole = not events or place.last == events[-1].seq
    if whole:
        place.move(cursor)
    return Batch(taken, place.cursor, up_to_date and whole, closed and whole)


def _object(text: str) -> dict[str, object]:
    try:
        shape = json.loads(text)
    except ValueError:
        raise answers.not_ours(text) from None
    return {str(key): value for key, value in shape.items()} if isinstance(shape, dict) else {}


def follow(
    execution: str,
    *,
    after: str,
    tail: int | None,
    patience: Patience,
    clock: Callable[[], float],
    url: str,
) -> Stream[Batch]:
    """Batches from `after` (a cursor or a seq; "" = the start), or from the last `tail` events, until the end.

    Raises Gone (the place is not there any more), NotFound, Unauthorized…; Unavailable when nothing came for longer
    than `patience` allows. A quiet execution is no failure: an open connection is waited on for ever.
    """
    place = Place(execution, after, tail)
    since_s = clock()
    tries = 0
    while True:
        asked_s = 0.0
        progress = False
        error: CarrelError
        head: Response | Failure = yield Open(requests.stream(execution, after=place.cursor, tail=place.tail))
        if isinstance(head, Failure):
            error, why = calls.no_answer(head.why, url), head.why
        elif head.status == 204:
            yield Emit(Batch((), place.cursor, up_to_date=True, closed=True))
            return
        elif head.status in calls.UNAVAILABLE:
            error, asked_s = answers.unavailable(head), calls.retry_after_s(head)
            why = str(error)
        elif head.status != 200:
            raise answers.problem(head)
        else:
            decoder = sse.Decoder()
            why = "the connection ended"
            while True:
                piece: bytes | Failure = yield Read()
                if isinstance(piece, Failure):
                    why = piece.why
                    break
                if not piece:
                    break
                try:
                    batch = _batch(place, list(decoder.feed(piece)))
                except (Again, sse.TooLong) as again:
                    why = str(again)
                    break
                if batch.events or batch.up_to_date or batch.closed:
                    progress = True
                    yield Emit(batch)
                if batch.closed:
                    return
            error = calls.no_answer(why, url)
        if progress:
            since_s, tries = clock(), 0
        tries += 1
        delay_s = patience.delay_s(tries, asked_s=asked_s)
        if patience.over(since_s, clock() + delay_s):
            raise error
        yield Sleep(delay_s, why)
