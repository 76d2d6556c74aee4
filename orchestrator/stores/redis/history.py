"""Histories and inboxes on Redis: the port `orchestrator.history.History`. Knows no queue and no worker.

Writing is two scripts (append, send); reading is ranges of the stream; following is the hub's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from typing import Any, Final

from orchestrator.archive import HistoryArchive
from orchestrator.clock import from_ms
from orchestrator.errors import (
    ArchiveUnavailable,
    BadInput,
    Closed,
    Conflict,
    Fenced,
    Gone,
    KeyReused,
    NotFound,
    Resend,
    TooMany,
)
from orchestrator.events import Cursor, Entry, Event
from orchestrator.history import Appended, Change, Lease, Message, Page, Sent, Spooled
from orchestrator.lifecycle import ExecutionState, IllegalTransition
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.entries import Encoded, encode, size_of, split, text_or_base64
from orchestrator.stores.redis.hub import Hub
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.record import dumps, of_outcome
from orchestrator.stores.redis.snapshot_record import of_snapshot

MOST_ENTRIES: Final = 4096
MOST_BYTES: Final = 4 << 20
MOST_MESSAGES: Final = 100_000
_FIRST_COUNT: Final = 128


class RedisHistory:
    """See the port. `fenced=False` takes every write as it comes, of any epoch, any number of times: for the test that
    shows what the fence is for, and for nothing else. `archive`: where histories that were handed over are read."""

    def __init__(
        self, server: Server, keys: Keys, *, fenced: bool = True, archive: HistoryArchive | None = None
    ) -> None:
        self._server = server
        self._keys = keys
        self._fenced = int(fenced)
        self._archive = archive
        self._hub = Hub(server, keys, self.read)

    async def aclose(self) -> None:
        """End the hub's readers. Followers get StoreUnavailable."""
        await self._hub.aclose()

    @property
    def readers(self) -> int:
        """How many histories are read live now, in this process: for metrics."""
        return self._hub.readers

    async def append(
        self,
        lease: Lease,
        *,
        attempt: int,
        spooled: Spooled | None = None,
        own: int | None = None,
        entries: Sequence[Entry] = (),
        change: Change | None = None,
    ) -> Appended:
        of_frames = spooled.entries if spooled else ()
        _check(own, of_frames, entries, change)
        encoded, size = encode(of_frames, attempt)
        if entries:
            more, more_size = encode(entries, attempt)
            encoded += more
            size += more_size
        if size > MOST_BYTES:
            raise BadInput(
                f"{size} bytes in one append",
                field="entries",
                limit=f"{MOST_BYTES} bytes",
                remedy="append less at once",
            )
        answer = await self._server.run(
            "append",
            self._keys.prefix,
            lease.execution_id,
            lease.epoch,
            self._fenced,
            attempt,
            "" if own is None else own,
            spooled.first_src if spooled else "",
            spooled.last_src if spooled else "",
            len(of_frames),
            "" if change is None else _change(change),
            *encoded,
        )
        match answer:
            case ["ok", int(tail), int(src), bytes(state), int(repeated)]:
                return Appended(tail, src, ExecutionState(state.decode()), bool(repeated))
            case ["resend", int(src)]:
                raise Resend(f"the history lacks frames before {src}: send again from there", src=src)
            case ["closed", int(tail)]:
                raise Closed(f"{lease.execution_id} has ended, nothing can be appended", tail=tail)
            case ["conflict", bytes(state), bytes(why)]:
                raise Conflict(f"{lease.execution_id} is {state.decode()}: {why.decode()}", state=state.decode())
            case ["illegal", bytes(state)]:
                raise IllegalTransition(f"{state.decode()} does not know {change and change.trigger}")
            case ["outcome", bytes(state)]:
                raise ValueError(f"an outcome goes with FINISHED and FINISHED with an outcome: {change} on {state!r}")
            case _:
                raise refusal(answer, lease.execution_id)

    async def read(self, execution_id: str, after: Cursor, *, limit: int = 1000, max_bytes: int = 4 << 20) -> Page:
        history = self._keys.history(execution_id)
        count = min(limit, _FIRST_COUNT)
        # Asked in this order: what the tail said was there must be in the range, or it is there no more.
        # The end marker takes a place in the reply, hence one more.
        told, reply = await self._server.ask_all(
            _standing(self._keys, execution_id), _range(history, after.seq, count + 1)
        )
        tail, generation, closed = _stand(execution_id, told)
        if generation != after.generation and (after.seq > 0 or after.generation > generation):
            raise await self._elsewhere(execution_id, after)
        if after.seq > tail:
            raise await self._gone(execution_id, f"{after} is not a place in this history")
        if told[3] == b"1":
            return await self._archived(execution_id, Cursor(generation, after.seq), limit, max_bytes)
        events: list[Event] = []
        taken = 0
        while True:
            more, ended = split(reply)
            wanted = events[-1].seq + 1 if events else after.seq + 1
            if (more[0].seq if more else tail + 1) > wanted and wanted <= tail:
                raise await self._gone(execution_id, f"events from {wanted} on are kept no longer")
            for event in more[: limit - len(events)]:
                size = size_of(event)
                if events and taken + size > max_bytes:
                    return Page(tuple(events), max(tail, events[-1].seq), False, generation)
                events.append(event)
                taken += size
            tail = max(tail, events[-1].seq) if events else tail
            at_end = (events[-1].seq if events else after.seq) == tail
            if ended or at_end or len(events) >= limit or not more:
                return Page(tuple(events), tail, at_end and (closed or ended), generation)
            # As many as should fit, judged by what came: small events by the thousand, large ones by the dozen.
            count = max(1, min(limit - len(events), (max_bytes - taken) * len(events) // max(taken, 1)))
            reply = await self._server.ask(*_range(history, events[-1].seq, count + 1))

    async def _archived(self, execution_id: str, after: Cursor, limit: int, max_bytes: int) -> Page:
        if self._archive is None:
            raise ArchiveUnavailable(
                f"the history of {execution_id} is in the archive, and this process has none",
                remedy="set archive_url here, too",
                retry_after_s=30,
            )
        return await self._archive.read(execution_id, after, limit=limit, max_bytes=max_bytes)

    async def hand_over(self, execution_id: str) -> None:
        match await self._server.run("hand_over", self._keys.prefix, execution_id):
            case ["ok"]:
                return
            case ["living", bytes(state)]:
                raise Conflict(f"{execution_id} is {state.decode()}: it has not ended", state=state.decode())
            case answer:
                raise refusal(answer, execution_id)

    def follow(self, execution_id: str, after: Cursor, *, max_bytes: int = 1 << 20) -> AsyncIterator[Page]:
        return self._hub.follow(execution_id, after, max_bytes=max_bytes)

    async def tail(self, execution_id: str) -> Page:
        told = await self._server.ask(*_standing(self._keys, execution_id))
        tail, generation, closed = _stand(execution_id, told)
        return Page((), tail, closed, generation)

    async def send(self, execution_id: str, message_id: str, body: bytes, *, mode: str = "steer") -> Sent:
        if not 0 < len(message_id) <= 128:
            raise BadInput("a message's id is too short or too long", field="id", limit="1 to 128 characters")
        receipt = dumps({"id": message_id, **text_or_base64(body)})
        digest = hashlib.sha256(mode.encode() + b"\0" + body).hexdigest()[:32]
        answer = await self._server.run(
            "send",
            self._keys.prefix,
            execution_id,
            message_id,
            digest,
            mode,
            body,
            "," + receipt[1:],
            MOST_MESSAGES,
        )
        match answer:
            case ["ok", int(n), int(seq), int(repeated)]:
                return Sent(n, bool(repeated), seq)
            case ["reused", int(n)]:
                raise KeyReused(
                    f"message id {message_id!r} was sent before, with another body",
                    key=message_id,
                    id=execution_id,
                    n=n,
                )
            case ["conflict", bytes(state)]:
                raise Conflict(
                    f"{execution_id} is {state.decode()}: nobody will read a message",
                    state=state.decode(),
                    remedy="submit a new execution",
                )
            case ["full"]:
                raise TooMany(
                    f"{execution_id} has had {MOST_MESSAGES} messages, which is the most", limit=MOST_MESSAGES
                )
            case _:
                raise refusal(answer, execution_id)

    async def inbox(self, execution_id: str, after: int, *, limit: int = 64, max_bytes: int = 1 << 20) -> list[Message]:
        reply = await self._server.ask(*_range(self._keys.inbox(execution_id), after, limit))
        messages: list[Message] = []
        taken = 0
        for name, (_, message_id, _, mode, _, time, _, body) in reply:
            taken += len(body)
            if messages and taken > max_bytes:
                break
            n = int(name.partition(b"-")[0])
            messages.append(Message(n, message_id.decode(), body, mode.decode(), from_ms(int(time))))
        return messages

    async def _elsewhere(self, execution_id: str, after: Cursor) -> Gone:
        """A cursor of another generation: of the history that had this name before, or of one that began again."""
        (before,) = await self._server.ask("HMGET", self._keys.record(execution_id), "before")
        gone = await self._gone(execution_id, f"{after} is not a place in this history")
        if before is None or after.generation > gone.data["generation"]:
            return gone
        old = before.decode()
        return Gone(
            f"{after} is a place in the history of {old}: its name has moved to {execution_id}",
            **gone.data | {"remedy": f"start from the start, or read on in {old}"},
            moved_to=execution_id,
            moved_from=old,
        )

    async def _gone(self, execution_id: str, why: str) -> Gone:
        first = await self._server.ask("XRANGE", self._keys.history(execution_id), "-", "+", "COUNT", 1)
        told = await self._server.ask(*_standing(self._keys, execution_id))
        tail, generation, _ = _stand(execution_id, told)
        earliest = int(first[0][0].partition(b"-")[0]) if first else tail + 1
        remedy = (
            f"start again from event {earliest}: after={earliest - 1}" if earliest > 1 else "start again from the start"
        )
        return Gone(f"{execution_id}: {why}", earliest=earliest, tail=tail, generation=generation, remedy=remedy)


def refusal(answer: Sequence[Any], execution_id: str) -> Exception:
    """The error of those answers that every script may give."""
    match answer:
        case ["missing"]:
            return NotFound(f"no execution {execution_id}", kind="execution", id=execution_id)
        case ["fenced", int(epoch)]:
            return Fenced(f"{execution_id} is not ours any more: its epoch is {epoch}", epoch=epoch)
        case _:
            return RuntimeError(f"a script gave an answer nobody knows: {answer!r}")


def _check(own: int | None, of_frames: Sequence[Entry], entries: Sequence[Entry], change: Change | None) -> None:
    count = len(of_frames) + len(entries)
    if count > MOST_ENTRIES:
        raise BadInput(
            f"{count} entries in one append", field="entries", limit=f"{MOST_ENTRIES}", remedy="append less at once"
        )
    free = (
        Change(delivered=change.delivered, consumed=change.consumed, output_mode=change.output_mode) if change else None
    )
    if own is None and (entries or change != free):
        raise ValueError("entries and changes need `own`: without it, a repeated call would write twice")


def _change(change: Change) -> str:
    out: dict[str, Any] = {}
    for name in ("attempt", "sandbox_id", "host", "failures", "delivered", "consumed", "output_mode", "seen"):
        value = getattr(change, name)
        if value is not None:
            out[name] = value
    if change.trigger is not None:
        out["trigger"] = change.trigger.value
    if change.expects is not None:
        out["expects"] = change.expects.value
    if change.outcome is not None:
        out["outcome"] = of_outcome(change.outcome)
    if change.resources is not None:
        out["resources"] = json.dumps(asdict(change.resources))
    if change.not_before_ms is not None:
        out["not_before"] = change.not_before_ms
    if change.frozen is not None:
        out["frozen"] = int(change.frozen)
    if change.started:
        out["started"] = True
    if change.unowned:
        out["unowned"] = True
    if change.snapshot is not None:
        out["snapshot"] = of_snapshot(change.snapshot)
    if change.done_wants:
        out["done_wants"] = list(change.done_wants)
    return dumps(out)


def _range(key: str, after: int, count: int) -> tuple[Encoded, ...]:
    # From the next number's own first id: the end marker of `after` itself is not asked for.
    return ("XRANGE", key, f"{after + 1}-0", "+", "COUNT", count)


def _standing(keys: Keys, execution_id: str) -> tuple[str, ...]:
    return ("HMGET", keys.record(execution_id), "state", "tail", "generation", "history_archived")


def _stand(execution_id: str, told: Sequence[bytes | None]) -> tuple[int, int, bool]:
    """Tail, generation, closed. Raises NotFound."""
    state, tail, generation, _ = told
    if state is None:
        raise NotFound(f"no execution {execution_id}", kind="execution", id=execution_id)
    return int(tail or 0), int(generation or 1), state == b"FINISHED"
