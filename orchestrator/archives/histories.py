"""Histories that have ended, in an archive: segments of events as JSON lines under zstd, and a manifest of them.

What is kept never changes, so the same history written twice is the same objects. Read by cursor: a page comes from
one segment, of which the last few read are at hand. Knows no store of living histories.
"""

from __future__ import annotations

import asyncio
import base64
import bisect
import hashlib
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import zstandard

from orchestrator.archive import FORMAT, HISTORIES, MANIFEST, Archive
from orchestrator.errors import Damaged
from orchestrator.events import Cursor, Event
from orchestrator.history import Page

SEGMENT_BYTES: Final = 4 << 20
_LEVEL: Final = 6  # written once, and text
_AT_HAND: Final = 4
_MANIFESTS: Final = 256
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_BYTES: Final = 64 << 20  # of a segment: an event may be large


@dataclass(frozen=True, slots=True)
class _Segment:
    first: int
    last: int
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class _Kept:
    """A manifest."""

    generation: int
    tail: int
    segments: tuple[_Segment, ...]


class ArchivedHistories:
    """The port HistoryArchive, on any archive."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._kept: OrderedDict[tuple[str, int], _Kept] = OrderedDict()
        self._events: OrderedDict[str, list[Event]] = OrderedDict()

    async def keep(self, execution_id: str, pages: AsyncIterator[Page]) -> None:
        segments: list[_Segment] = []
        waiting: list[Event] = []
        lines: list[bytes] = []
        size_bytes = 0
        generation, tail = 1, 0

        async def store() -> None:
            nonlocal size_bytes
            if waiting:
                name = f"{HISTORIES}{execution_id}/{generation}-{waiting[0].seq:012d}"
                data = await asyncio.to_thread(_packed, lines)
                await asyncio.to_thread(self._archive.put, name, [data])
                segments.append(_Segment(waiting[0].seq, waiting[-1].seq, name, hashlib.sha256(data).hexdigest()))
            waiting.clear()
            lines.clear()
            size_bytes = 0

        async for page in pages:
            generation, tail = page.generation, page.tail
            for event in page.events:
                line = _line(event)
                if size_bytes + len(line) > SEGMENT_BYTES:
                    await store()
                waiting.append(event)
                lines.append(line)
                size_bytes += len(line)
        await store()
        said = {
            "format": FORMAT,
            "execution": execution_id,
            "generation": generation,
            "tail": tail,
            "segments": [[one.first, one.last, one.name, one.sha256] for one in segments],
        }
        name = _manifest(execution_id, generation)
        await asyncio.to_thread(self._archive.put, name, [json.dumps(said).encode()])

    async def read(self, execution_id: str, after: Cursor, *, limit: int, max_bytes: int) -> Page:
        kept = await self._manifest(execution_id, after.generation)
        at = bisect.bisect_left(kept.segments, after.seq + 1, key=lambda one: one.last)
        if at == len(kept.segments):
            return Page((), kept.tail, True, kept.generation)
        events = await self._segment(kept.segments[at])
        begin = upto = after.seq + 1 - events[0].seq
        room = max_bytes
        while upto < len(events) and upto - begin < limit:
            room -= 64 + len(events[upto].body or b"") + (20 if events[upto].body else len(str(events[upto].data)))
            if room < 0 and upto > begin:
                break
            upto += 1
        taken = tuple(events[begin:upto])
        return Page(taken, kept.tail, taken[-1].seq == kept.tail, kept.generation)

    async def _manifest(self, execution_id: str, generation: int) -> _Kept:
        known = self._kept.get((execution_id, generation))
        if known is not None:
            self._kept.move_to_end((execution_id, generation))
            return known
        name = _manifest(execution_id, generation)
        data = await asyncio.to_thread(self._whole, name)
        try:
            said = json.loads(data)
            if said["format"] != FORMAT or said["execution"] != execution_id or said["generation"] != generation:
                raise ValueError("it is of something else, or of a newer release")
            known = _Kept(generation, int(said["tail"]), tuple(_Segment(*one) for one in said["segments"]))
        except (ValueError, TypeError, KeyError) as error:
            raise Damaged(f"{name} is no manifest: {error}", what=name) from error
        self._kept[execution_id, generation] = known
        if len(self._kept) > _MANIFESTS:
            self._kept.popitem(last=False)
        return known

    async def _segment(self, segment: _Segment) -> Sequence[Event]:
        events = self._events.get(segment.name)
        if events is None:
            events = await asyncio.to_thread(self._read, segment)
            self._events[segment.name] = events
            if len(self._events) > _AT_HAND:
                self._events.popitem(last=False)
        else:
            self._events.move_to_end(segment.name)
        return events

    def _read(self, segment: _Segment) -> list[Event]:
        data = self._whole(segment.name)
        if hashlib.sha256(data).hexdigest() != segment.sha256:
            raise Damaged(f"{segment.name} is not what it was when it was written", what=segment.name)
        text = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        return [_event(line) for line in text.splitlines()]

    def _whole(self, name: str) -> bytes:
        pieces = self._archive.get(name)
        data = bytearray()
        try:
            for piece in pieces:
                data += piece
                if len(data) > _MOST_BYTES:
                    raise Damaged(f"{name} is larger than anything that was written there", what=name)
        finally:
            pieces.close()
        return bytes(data)


def _manifest(execution_id: str, generation: int) -> str:
    return f"{HISTORIES}{execution_id}/{generation}{MANIFEST}"


def _packed(lines: Sequence[bytes]) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(b"".join(lines))


def _line(event: Event) -> bytes:
    time_ms = (event.time - _EPOCH) // timedelta(milliseconds=1)
    said: list[Any] = [event.seq, event.type, time_ms, event.attempt, event.source, dict(event.data)]
    if event.body is not None:
        try:
            said.append({"text": event.body.decode()})
        except UnicodeDecodeError:
            said.append({"b64": base64.b64encode(event.body).decode()})
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def _event(line: bytes) -> Event:
    seq, kind, time_ms, attempt, source, data, *rest = json.loads(line)
    body: bytes | None = None
    if rest:
        (said,) = rest
        body = said["text"].encode() if "text" in said else base64.b64decode(said["b64"])
    return Event(seq, kind, _EPOCH + timedelta(milliseconds=time_ms), attempt, source, data, body)
