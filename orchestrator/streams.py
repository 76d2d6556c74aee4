"""The port of the generic streams namespace: named, append-only streams of bytes. Knows no Redis and no HTTP.

The model is that of the Durable Streams protocol (public, draft 1.0, with its sections on closing, idempotent producers
and forks), so that its public conformance suite can judge a store. Executions do not use it: their channel is
`orchestrator.history`, which has fences and exact frames. One contract suite (tests/contracts) runs against every
implementation.

    name        of one tenant; a new stream under the name of a removed one is another stream
    offset      a Cursor: (generation, seq), seq counts the appends of one generation from 1. A generation is given once
                per installation, so an offset of a removed stream is Gone, never taken for a place in its successor.
                Cursor(0, 0) is the beginning of whatever is there
    fork        shares its source's data and offsets up to the fork point, then continues in its own generation
    JSON        streams of media type application/json hold messages: a body is one or more of them, joined with commas
                (`wire.durable_streams.flattened`), and every consumer adds its own brackets
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from orchestrator.errors import BadInput
from orchestrator.events import Cursor

#: The beginning of any stream.
START: Final = Cursor(0, 0)
JSON: Final = "application/json"
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"

NAME_BYTES: Final = 512
APPEND_BYTES: Final = 4 << 20
STREAM_BYTES: Final = 256 << 20
PRODUCERS: Final = 10_000
FORK_DEPTH: Final = 64


@dataclass(frozen=True, slots=True)
class StreamName:
    """A stream of one tenant: another tenant's does not exist for it. `path` is any text of 1 to 512 bytes of UTF-8
    without control characters; slashes mean nothing. Raises BadInput."""

    tenant: str
    path: str

    def __post_init__(self) -> None:
        try:
            size = len(self.path.encode())
        except UnicodeEncodeError:
            size = 0
        if not 0 < size <= NAME_BYTES or any(ord(character) < 32 or ord(character) == 127 for character in self.path):
            raise BadInput(
                "this cannot be the name of a stream",
                field="name",
                limit=f"1 to {NAME_BYTES} bytes of UTF-8 without control characters",
                remedy="choose a shorter, printable name",
            )


@dataclass(frozen=True, slots=True)
class Fork:
    """Where a new stream branches off. `offset` None = the source's tail at that moment. `sub_offset` > 0 goes on into
    the append that follows `offset`: that many bytes of it, or messages of a JSON stream, are copied as the fork's own
    first data."""

    source: StreamName
    offset: Cursor | None = None
    sub_offset: int = 0


@dataclass(frozen=True, slots=True)
class NewStream:
    """What a stream is to be. `content_type` None = the source's, or DEFAULT_CONTENT_TYPE. At most one of `ttl_s`
    (since the last read or write, renewed by each) and `expires_at` (fixed); a fork without either has its source's.
    `body` empty = no data yet."""

    content_type: str | None = None
    ttl_s: int | None = None
    expires_at: datetime | None = None
    closed: bool = False
    fork: Fork | None = None
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream as it stands. `tail`: the offset after its last append. `closed`: nothing comes any more, for ever."""

    name: StreamName
    content_type: str
    tail: Cursor
    closed: bool
    ttl_s: int | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Producer:
    """One writer that numbers its appends, so that a repeated one counts once: `seq` from 0 in each `epoch`; a higher
    epoch fences the lower ones."""

    id: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Written:
    """After an append. `offset`: after what was written, or the tail if nothing was. `producer_seq`: the highest
    accepted of this producer and epoch. `repeated`: the same producer's append had been accepted before."""

    offset: Cursor
    closed: bool
    producer_seq: int | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """Appends in order, from `start` to `next`; whole ones, so `bodies` may be a little more than was asked for.
    `up_to_date`: nothing came after it when it was read. `closed`: and nothing will, for ever."""

    stream: Stream
    start: Cursor
    next: Cursor
    bodies: tuple[bytes, ...]
    up_to_date: bool
    closed: bool


class Streams(Protocol):
    """Streams by name. All methods raise StoreUnavailable when the store does not answer; then a call that writes may
    or may not have been applied, and only `append` with a producer can be repeated without a thought."""

    async def create(self, name: StreamName, new: NewStream) -> tuple[Stream, bool]:
        """Make it, with `new.body` as its first append, durable when this returns; True = made now. If it is there and
        was made the same way (content type, TTL or expiry, fork, closed or not) it is returned as it stands and nothing
        is written.

        Raises Conflict (there, but made another way; there, but removed while forks need it; the source's content type
        is another; the source is removed), NotFound (no source), BadInput (fork.offset or fork.sub_offset beyond what
        the source has), TooMany (`data`: limit)."""

    async def look(self, name: StreamName) -> Stream:
        """As it stands; does not renew its TTL. Raises NotFound, Gone (removed, but forks need it)."""

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
        """Add `body` (empty: nothing, only with `close`) and close, in one step, durable when this returns.

        `content_type` must be the stream's, parameters aside; it is not looked at for an empty body. `stream_seq` must
        be greater, byte by byte, than the last one of this stream (whoever wrote it). Closing twice is closing once,
        without a body or by the same producer with the same seq.

        Raises NotFound, Gone as `look`; in this order Closed (`data`: tail), Conflict (content type), Fenced (a higher
        epoch of this producer exists; `data`: epoch), BadInput (a new epoch that does not begin with seq 0), Resend
        (`src` = the producer seq expected), Conflict (stream_seq), TooMany (`data`: limit)."""

    async def read(self, name: StreamName, at: Cursor | None, *, max_bytes: int = 1 << 20) -> Chunk:
        """What comes after `at` (None = the tail: nothing), at once. Renews the TTL. Raises NotFound; Gone (removed, or
        the offset belongs to a stream that was); BadInput (an offset this stream never gave)."""

    def follow(self, name: StreamName, at: Cursor | None, *, max_bytes: int = 1 << 18) -> AsyncIterator[Chunk]:
        """Chunks from `at` on, live, without gap or repeat, until the closed one. The first comes at once, empty if
        there is nothing yet; later ones are never empty, but for the closed one. Errors as `read`, also in between when
        the stream is removed. Who does not keep up holds nothing but an offset."""

    async def delete(self, name: StreamName) -> None:
        """Remove it: now, or once its last fork is removed; until then its name stays taken. Raises NotFound, Gone."""
