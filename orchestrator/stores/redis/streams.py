"""Generic streams on Redis: the port `orchestrator.streams.Streams`. Knows no HTTP.

Everything is decided in the scripts (lua/stream_*.lua), each one step. What a script says no to becomes an error here.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from orchestrator.clock import from_ms, to_ms
from orchestrator.errors import BadInput, CarrelError, Closed, Conflict, Fenced, Gone, NotFound, Resend, TooMany
from orchestrator.events import Cursor
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.keys import Keys
from orchestrator.stores.redis.stream_hub import StreamHub
from orchestrator.streams import (
    APPEND_BYTES,
    DEFAULT_CONTENT_TYPE,
    FORK_DEPTH,
    PRODUCERS,
    STREAM_BYTES,
    Chunk,
    NewStream,
    Producer,
    Stream,
    StreamName,
    Written,
)
from orchestrator.wire import durable_streams

#: Of all streams of the installation: they share the server's memory with the executions, whose promises come first.
ALL_STREAMS_BYTES: Final = 1 << 30
#: A fork reads its source before it is made; if another stream has taken that name meanwhile, it looks again.
_LOOKS: Final = 5


class RedisStreams:
    """See the port. `total_bytes`: most bytes of all streams together. `aclose` ends the readers."""

    def __init__(self, server: Server, keys: Keys, *, total_bytes: int = ALL_STREAMS_BYTES) -> None:
        self._server = server
        self._prefix = keys.prefix
        self._total_bytes = total_bytes
        self._hub = StreamHub(server, keys.streams)

    async def aclose(self) -> None:
        """End every `follow`: its consumer gets StoreUnavailable."""
        await self._hub.aclose()

    @property
    def readers(self) -> int:
        """How many streams are followed in this process."""
        return self._hub.readers

    async def create(self, name: StreamName, new: NewStream) -> tuple[Stream, bool]:
        _check_body(new.body)
        if new.ttl_s is not None and new.expires_at is not None:
            raise BadInput(
                "a stream has a time to live or an expiry",
                field="expires_at",
                limit="one of ttl_s and expires_at",
                remedy="leave one out",
            )
        for _ in range(_LOOKS):
            answer = await self._server.run("stream_create", *await self._plan(name, new))
            match answer:
                case [("made" | "there") as word, standing]:
                    return _stream(name, standing), word == "made"
                case ["moved"]:
                    continue
                case _:
                    raise _refusal(answer, name, new, total_bytes=self._total_bytes)
        raise Conflict(f"the source of {name.path} keeps changing", remedy="try again")

    async def look(self, name: StreamName) -> Stream:
        answer = await self._server.run("stream_read", self._prefix, _key(name), "", 0, 0, 0)
        return _chunk(answer, name)[0].stream

    async def append(
        self,
        name: StreamName,
        body: bytes,
        *,
        content_type: str | None = None,
        close: bool = False,
        stream_seq: str | None = None,
        producer: Producer | None = None,
    ) -> Written:
        _check_body(body)
        if not body and not close:
            raise BadInput("there is nothing to append", field="body", limit="at least one byte", remedy="send one")
        answer = await self._server.run(
            "stream_append",
            self._prefix,
            _key(name),
            secrets.token_bytes(9),
            durable_streams.media_type(content_type or ""),
            body,
            int(close),
            int(stream_seq is not None),
            stream_seq or "",
            producer.id if producer else "",
            producer.epoch if producer else 0,
            producer.seq if producer else 0,
            STREAM_BYTES,
            self._total_bytes,
            PRODUCERS,
        )
        match answer:
            case [("ok" | "repeated") as word, generation, int(n), int(closed), int(highest)]:
                seq = highest if producer else None
                return Written(Cursor(int(generation), n), bool(closed), seq, word == "repeated")
            case _:
                raise _refusal(answer, name, total_bytes=self._total_bytes)

    async def read(self, name: StreamName, at: Cursor | None, *, max_bytes: int = 1 << 20) -> Chunk:
        return (await self._read(name, at, max_bytes))[0]

    async def follow(self, name: StreamName, at: Cursor | None, *, max_bytes: int = 1 << 18) -> AsyncIterator[Chunk]:
        chunk, own = await self._read(name, at, max_bytes)
        yield chunk
        watch = None
        try:
            while not chunk.closed:
                seq = chunk.next.seq if chunk.next.generation == own else 0
                fresh = None
                if chunk.up_to_date:
                    if watch is None:
                        watch = self._hub.join(own, seq, lambda: self._look(name))
                    fresh = await watch.after(seq, max_bytes)
                if fresh is None:
                    # Behind what the hub still holds: this reader catches up by itself.
                    chunk, _ = await self._read(name, chunk.next, max_bytes)
                elif fresh.seq > seq or fresh.closed:
                    upto = Cursor(own, fresh.seq) if fresh.seq > seq else chunk.next
                    stream = replace(chunk.stream, tail=upto, closed=fresh.closed)
                    chunk = Chunk(stream, chunk.next, upto, fresh.bodies, fresh.up_to_date, fresh.closed)
                if chunk.bodies or chunk.closed:
                    yield chunk
        finally:
            if watch is not None:
                self._hub.leave(watch)

    async def delete(self, name: StreamName) -> None:
        # After a lost answer the repeated call finds nothing: NotFound for what is gone by our own hand.
        answer = await self._server.run("stream_delete", self._prefix, _key(name))
        if answer[0] != "ok":
            raise _refusal(answer, name)

    async def _read(self, name: StreamName, at: Cursor | None, max_bytes: int) -> tuple[Chunk, int]:
        """The chunk, and the generation of the stream's own entries."""
        place = ("", 0) if at is None else (str(at.generation), at.seq)
        answer = await self._server.run("stream_read", self._prefix, _key(name), *place, max(1, max_bytes), 1)
        return _chunk(answer, name)

    async def _look(self, name: StreamName) -> int:
        """Which generation the name means now; a TTL that is over takes effect here."""
        answer = await self._server.run("stream_read", self._prefix, _key(name), "", 0, 0, 0)
        return _chunk(answer, name)[1]

    async def _plan(self, name: StreamName, new: NewStream) -> tuple[str | bytes | int, ...]:
        """The arguments of stream_create. What is asked for is compared as JSON with what was asked for before."""
        fork = new.fork
        expires_ms = to_ms(new.expires_at) if new.expires_at else ""
        offset = str(fork.offset) if fork and fork.offset else ""
        wanted = [new.ttl_s, expires_ms, fork.source.path if fork else "", offset, fork.sub_offset if fork else 0]
        content_type = new.content_type or ("" if fork else DEFAULT_CONTENT_TYPE)
        copied, source = b"", 0
        if fork:
            copied, source = await self._copied(name, new)
        return (
            self._prefix,
            _key(name),
            durable_streams.media_type(content_type),
            content_type,
            "" if new.ttl_s is None else new.ttl_s * 1000,
            expires_ms,
            int(new.closed),
            json.dumps(wanted),
            new.body,
            _key(fork.source) if fork else "",
            fork.offset.generation if fork and fork.offset else "",
            fork.offset.seq if fork and fork.offset else 0,
            copied,
            source,
            self._total_bytes,
            FORK_DEPTH,
        )

    async def _copied(self, name: StreamName, new: NewStream) -> tuple[bytes, int]:
        """What of the append behind the fork point is copied, and which generation the source is. An append never
        changes, so this stays true as long as the source is the same stream; the script checks that."""
        fork = new.fork
        assert fork is not None
        try:
            if not fork.sub_offset:
                return b"", await self._look(fork.source)
            at = ("", 0) if fork.offset is None else (str(fork.offset.generation), fork.offset.seq)
            answer = await self._server.run("stream_read", self._prefix, _key(fork.source), *at, 1, 0)
            chunk, own = _chunk(answer, fork.source)
        except (NotFound, Gone):
            return b"", 0  # the script says so, unless the fork is there already
        media = durable_streams.media_type(chunk.stream.content_type)
        if not chunk.bodies:
            raise BadInput(
                f"nothing follows the fork's offset in {fork.source.path}",
                field="sub_offset",
                limit="0, at the source's tail",
                remedy="fork at an earlier offset",
            )
        return durable_streams.prefix(media, chunk.bodies[0], fork.sub_offset), own


def _key(name: StreamName) -> str:
    # Quoted: a tenant's name with a colon in it cannot reach into another's.
    return f"{quote(name.tenant, safe='')}:{name.path}"


def _check_body(body: bytes) -> None:
    if len(body) > APPEND_BYTES:
        raise BadInput(
            f"an append of {len(body)} bytes is too large",
            field="body",
            limit=f"{APPEND_BYTES} bytes",
            remedy="send it in several appends",
        )


def _stream(name: StreamName, standing: list[Any]) -> Stream:
    _, content_type, closed, generation, n, ttl, expires = standing
    return Stream(
        name,
        content_type.decode(),
        Cursor(int(generation), n),
        bool(closed),
        int(ttl) // 1000 if ttl else None,
        from_ms(int(expires)) if expires else None,
    )


def _chunk(answer: list[Any], name: StreamName) -> tuple[Chunk, int]:
    match answer:
        case ["ok", standing, start_g, int(start_n), next_g, int(next_n), int(at_end), bodies]:
            stream = _stream(name, standing)
            start, upto = Cursor(int(start_g), start_n), Cursor(int(next_g), next_n)
            chunk = Chunk(stream, start, upto, tuple(bodies), bool(at_end), bool(at_end) and stream.closed)
            return chunk, int(standing[0])
        case _:
            raise _refusal(answer, name)


def _refusal(
    answer: list[Any], name: StreamName, new: NewStream | None = None, *, total_bytes: int = 0
) -> CarrelError | RuntimeError:
    source = new.fork.source.path if new and new.fork else ""
    match answer:
        case ["missing"]:
            return NotFound(f"there is no stream {name.path}", kind="stream", id=name.path)
        case ["no_source"]:
            return NotFound(f"there is no stream {source} to fork from", kind="stream", id=source)
        case ["removed"] if new is None:
            return Gone(f"{name.path} was removed; it is kept only for its forks", remedy="read one of its forks")
        case ["removed"]:
            return Conflict(
                f"{name.path} was removed, but its forks still need it",
                state="removed",
                remedy="remove its forks, or choose another name",
            )
        case ["source_removed"]:
            return Conflict(f"{source} was removed", state="removed", remedy="fork one of its forks")
        case ["source_type", bytes(kind)]:
            return Conflict(f"{source} has the content type {kind.decode()}", remedy="leave the content type out")
        case ["differs", bytes(what)]:
            return Conflict(
                f"{name.path} is there, with another {what.decode()}", state="exists", remedy="choose another name"
            )
        case ["beyond"]:
            return BadInput(
                f"{source} has no such offset",
                field="fork_offset",
                limit="an offset it gave",
                remedy="ask for its tail",
            )
        case ["closed", generation, int(n)]:
            return Closed(f"{name.path} is closed", tail=str(Cursor(int(generation), n)))
        case ["type", bytes(kind)]:
            return Conflict(f"{name.path} has the content type {kind.decode()}", remedy="send it with that one")
        case ["stale", int(epoch)]:
            return Fenced(f"a newer epoch of this producer writes to {name.path}", epoch=epoch)
        case ["epoch"]:
            return BadInput(
                "a new epoch begins with seq 0", field="producer_seq", limit="0", remedy="send this append as seq 0"
            )
        case ["gap", int(expected)]:
            return Resend("appends of this producer are missing", src=expected)
        case ["seq", bytes(last)]:
            return Conflict(
                f"{name.path} has seen {last.decode()!r} already", last=last.decode(), remedy="use a greater Stream-Seq"
            )
        case ["full", bytes(what)]:
            limit, about = {**_LIMITS, b"bytes": (total_bytes, _ALL)}[what]
            return TooMany(f"{name.path}: {about}", limit=limit, remedy="use another stream, or remove old ones")
        case ["gone"]:
            return Gone(
                f"this offset belongs to another stream that was called {name.path}",
                earliest="-1",
                remedy="start again from offset -1",
            )
        case ["never"]:
            return BadInput(
                f"{name.path} never gave this offset", field="offset", limit="up to its tail", remedy="start from -1"
            )
        case _:
            return RuntimeError(f"a script gave an answer nobody knows: {answer!r}")


_ALL: Final = "all streams together would be larger than this installation allows"
_LIMITS: Final = {
    b"stream": (STREAM_BYTES, f"it would be larger than {STREAM_BYTES} bytes"),
    b"producers": (PRODUCERS, f"it has had {PRODUCERS} producers"),
    b"links": (FORK_DEPTH, f"it would be a fork of a fork, {FORK_DEPTH} deep"),
}
