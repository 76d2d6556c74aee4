"""What frames tell: entries for the history, and the facts the actor moves by. Pure: no I/O, no clock.

A frame's entries carry its `src` and stay in one batch, so that a batch is written once or not at all. A batch ends at
a `started` and at an `exit` frame: their transition belongs into the same append.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator import events
from orchestrator.engine.parse import MAX_ENTRIES, entries_of, typed
from orchestrator.events import Entry
from orchestrator.execution import Execution, OutputMode
from orchestrator.link import Frame

BATCH_ENTRIES: Final = 4096  # what one append takes
BATCH_BYTES: Final = 2 << 20
INTERRUPT_PREFIX: Final = "interrupt:"  # of ids of signals that are somebody's wish, not the platform's


@dataclass(frozen=True, slots=True)
class Exit:
    """The harness's own end, as init saw it. `unstarted`: its command could not be executed at all."""

    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False
    unstarted: str = ""
    inbox: int | None = None  # the last message it had read from its stdin, where init could tell

    @property
    def data(self) -> dict[str, Any]:
        """As data of the `execution.exited` event."""
        told: dict[str, Any] = {"exit_code": self.exit_code} if self.signal is None else {"signal": self.signal}
        if self.oom:
            told["oom"] = True
        if self.unstarted:
            told["error"] = self.unstarted
        if self.inbox is not None:
            told["inbox"] = self.inbox
        return told

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Exit:
        """The inverse of `data`."""
        oom, error = bool(data.get("oom")), str(data.get("error", ""))
        return cls(data.get("exit_code"), data.get("signal"), oom, error, data.get("inbox"))


@dataclass(slots=True)
class Batch:
    """Frames first_src..last_src, read. `delivered`, `consumed`, `output_mode` None = nothing said."""

    first_src: int
    last_src: int
    entries: list[Entry] = field(default_factory=list)
    delivered: int | None = None
    consumed: int | None = None
    output_mode: OutputMode | None = None
    started: bool = False
    exit: Exit | None = None
    progress: bool = False
    interrupts: list[str] = field(default_factory=list)  # ids of wishes that were carried out, or had nobody to reach
    stdin_closed_from: int | None = None


class Reading:
    """Reads the frames of one attempt in order. What it remembers between batches can be had from the record, but
    for two things an adoption forgets: which message ids it has seen (asked for again by `unresolved`) and
    that the last frame was the middle of a line longer than 1 MiB (its rest is then read as a line of its own).
    """

    def __init__(self, execution: Execution) -> None:
        self.attempt = execution.attempt
        self.src = execution.src
        self.delivered = execution.delivered
        self.consumed = execution.consumed
        self.output_mode: OutputMode = execution.output_mode
        self.numbers: dict[str, int] = {}  # message id → n, of those not consumed yet
        self.oom_kills = 0  # told so far, in this epoch
        self.informed = self.delivered <= self.consumed
        self._midline = False
        self._unstarted = ""

    def know(self, message_id: str, n: int) -> None:
        """A message that may be acknowledged from now on."""
        if n > self.consumed:
            self.numbers[message_id] = n

    def unresolved(self, frames: deque[Frame]) -> bool:
        """True when a harness may acknowledge, in these frames, a message an earlier owner sent: then all that were
        delivered must be made known, once."""
        return not self.informed and any(b'"ack"' in frame.payload for frame in frames)

    def read(self, frames: deque[Frame]) -> Batch:
        """Take frames from the left, until a batch is full or complete. At least one frame must be there."""
        first = frames[0]
        batch = Batch(max(first.src, self.src + 1), self.src)
        size = 0
        while frames and size < BATCH_BYTES:
            frame = frames[0]
            if frame.verb == "gap":
                frames.popleft()
                self._gap(frame, batch)
                continue
            if frame.src <= self.src:  # told before
                frames.popleft()
                continue
            if batch.last_src >= batch.first_src and frame.src != batch.last_src + 1:
                break  # a hole: the next append begins with it, and the history asks for what is missing
            if len(batch.entries) + self._at_most(frame) > BATCH_ENTRIES:
                break
            frames.popleft()
            self._tell(frame, batch)
            size += len(frame.payload)
            self.src = batch.last_src = frame.src
            if batch.started or batch.exit is not None:
                break
        return batch

    def _at_most(self, frame: Frame) -> int:
        """An upper bound of the entries of a frame."""
        if frame.verb != "output" or self.output_mode == "bytes":
            return 1
        return min(2 * frame.payload.count(b"\n") + 2, 2 * MAX_ENTRIES)

    def _gap(self, frame: Frame, batch: Batch) -> None:
        oldest = int(frame.fields["oldest_src"])
        if oldest <= self.src + 1:
            return
        data = {
            "attempt": self.attempt,
            "first_src": self.src + 1,
            "last_src": oldest - 1,
            "why": "the sandbox kept no more",
        }
        batch.entries.append(Entry(events.HISTORY_GAP, data, src=oldest - 1))
        self.src = batch.last_src = oldest - 1

    def _tell(self, frame: Frame, batch: Batch) -> None:
        verb, said = frame.verb, frame.fields
        if verb == "output":
            batch.progress = True
            batch.entries.extend(self._output(frame, batch))
        elif verb == "delivered":
            n = int(said["n"])
            again = {"redelivered": True} if n <= self.delivered else {}
            self.delivered = max(self.delivered, n)
            batch.delivered = self.delivered
            batch.progress = True
            batch.entries.append(_own(events.MESSAGE_DELIVERED, {"n": n, "id": said.get("id", ""), **again}, frame))
        elif verb == "started":
            batch.started = True
            # As declared; only `auto` is left to the first line.
            if self.output_mode == "auto" and said.get("output") in ("bytes", "jsonl"):
                self.output_mode = batch.output_mode = said["output"]
        elif verb == "mode":
            if self.output_mode == "auto" and said.get("output") == "bytes":
                self.output_mode = batch.output_mode = "bytes"
        elif verb == "signalled":
            signal_id = str(said.get("id", ""))
            if signal_id.startswith(INTERRUPT_PREFIX):
                wish = signal_id.removeprefix(INTERRUPT_PREFIX)
                batch.interrupts.append(wish)
                batch.entries.append(_own(events.INTERRUPTED, {"id": wish, "sent": said.get("sent", True)}, frame))
        elif verb == "note":
            self._note(frame, batch)
        elif verb == "exit":
            oom = bool(said.get("oom_hint"))
            batch.exit = Exit(said.get("code"), said.get("signal"), oom, self._unstarted, said.get("inbox"))
            told = {**batch.exit.data, "duration_ms": said.get("duration_ms", 0)}
            batch.entries.append(_own(events.EXITED, told, frame))

    def _note(self, frame: Frame, batch: Batch) -> None:
        what, said = frame.fields.get("what"), frame.fields
        if what == "oom" and said.get("oom_kills", 0) > self.oom_kills:
            self.oom_kills = int(said["oom_kills"])
            batch.entries.append(_own(events.SANDBOX_OOM, {"kills": self.oom_kills}, frame))
        elif what == "stdin_closed":
            batch.stdin_closed_from = int(said.get("undelivered_from", 0))
        elif what == "exec_failed":
            self._unstarted = str(said.get("why", "")) or f"errno {said.get('errno')}"

    def _output(self, frame: Frame, batch: Batch) -> list[Entry]:
        stream = "stderr" if frame.fields.get("stream") == "stderr" else "stdout"
        data = frame.payload
        if stream == "stderr" or self.output_mode == "bytes":
            return [_bytes(stream, data, frame)]
        # A line init had to cut (too long, or at a quiesce) is output on both sides of the cut.
        head = (data.find(b"\n") + 1 or len(data)) if self._midline else 0
        self._midline = bool(frame.fields.get("partial"))
        tail = max(data.rfind(b"\n") + 1, head) if self._midline else len(data)
        return [
            *([_bytes(stream, data[:head], frame)] if head else ()),
            *(self._lines(data[head:tail], frame, batch) if head < tail else ()),
            *([_bytes(stream, data[tail:], frame)] if tail < len(data) else ()),
        ]

    def _lines(self, data: bytes, frame: Frame, batch: Batch) -> list[Entry]:
        """Whole lines of stdout, in a stream that is JSONL or may yet turn out to be."""
        if self.output_mode == "auto":
            first = next((line for line in data.split(b"\n") if line.strip()), None)
            if first is not None:
                self.output_mode = batch.output_mode = "bytes" if typed(first) is None else "jsonl"
        if self.output_mode != "jsonl":
            return [_bytes("stdout", data, frame)]
        entries: list[Entry] = []
        for entry in entries_of(data, src=frame.src, time_ms=frame.time_ms):
            entries.append(entry)
            if entry.type == "ack" and (receipt := self._receipt(entry, batch)) is not None:
                entries.append(receipt)
        return entries

    def _receipt(self, entry: Entry, batch: Batch) -> Entry | None:
        message_id = entry.data.get("id")
        n = self.numbers.pop(message_id, None) if isinstance(message_id, str) else None
        if n is None:
            return None
        self.consumed = max(self.consumed, n)
        batch.consumed = self.consumed
        data = {"n": n, "id": message_id}
        return Entry(events.MESSAGE_CONSUMED, data, None, "platform", entry.src, entry.time_ms)


def _bytes(stream: str, data: bytes, frame: Frame) -> Entry:
    return Entry(events.OUTPUT, {"stream": stream}, data, "harness", frame.src, frame.time_ms)


def _own(kind: str, data: dict[str, Any], frame: Frame) -> Entry:
    return Entry(kind, data, None, "platform", frame.src, frame.time_ms)
