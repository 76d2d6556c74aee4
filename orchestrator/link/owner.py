"""The line of the one who holds the lease. Knows which answer belongs to which question, not what becomes of frames."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Literal

from orchestrator.errors import LinkLost, LinkRefused
from orchestrator.link.line import ANSWER_LIMIT_S, Hello, Line, Refusal
from orchestrator.sandbox import Duplex
from sandbox_init.frames import Frame

_PART_BYTES: Final = 512 << 10  # of a message; a frame takes twice that
_QUEUE_BYTES: Final = 4 << 20  # frames read and not yet taken; above it the stream waits, which costs init nothing


class OwnerLink:
    """The line of the one who holds the lease: streams the spool, starts, steers, signals and ends the harness.

    Spool frames come in order through `take`; everything else init says is kept apart, so that a stream nobody takes
    does not delay an answer that is already here. One reader task, ended by `close`.
    """

    def __init__(self, line: Line, hello: Hello, changed: asyncio.Event) -> None:
        self.hello = hello
        self.lost: LinkLost | LinkRefused | None = None  # why the line ended, once it has
        self.held = hello.held
        self.spool_bytes = 0  # when init last said that it holds the harness back
        self.refusals: deque[Refusal] = deque(maxlen=64)
        self._line = line
        self._changed = changed
        self._frames: deque[Frame] = deque()
        self._queued_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self._answers: dict[str, deque[asyncio.Future[Frame]]] = {}
        self._reader = asyncio.create_task(self._read(), name="link-reader")

    @classmethod
    async def open(cls, duplex: Duplex, *, epoch: int, after: int, changed: asyncio.Event) -> OwnerLink:
        """Greet as the owner under `epoch` and ask for every frame after `after`. `changed` is set whenever there is
        something to take, to hear, or the line ended.

        Raises LinkRefused (`why`: stale_epoch when a later owner has been there), LinkLost."""
        line = Line(duplex)
        try:
            hello = await line.greet({"role": "owner", "epoch": epoch, "after": after})
        except BaseException:
            await line.close()
            raise
        return cls(line, hello, changed)

    @property
    def waiting(self) -> bool:
        """True when there are frames to take."""
        return bool(self._frames)

    def take(self, *, max_frames: int, max_bytes: int) -> list[Frame]:
        """Spool frames (and `gap`) in order; at least one if any is there, at most so many and so much payload."""
        taken: list[Frame] = []
        size = 0
        while self._frames and len(taken) < max_frames:
            size += len(self._frames[0].payload)
            if taken and size > max_bytes:
                break
            frame = self._frames.popleft()
            self._queued_bytes -= len(frame.payload) + 64
            taken.append(frame)
        if self._queued_bytes <= _QUEUE_BYTES:
            self._room.set()
        return taken

    async def open_gate(self, *, cgroup: bool) -> None:
        """Let the harness and all else begin: `cgroup` says whether it was put into `work` first."""
        await self._ask("gate_open", {"cgroup": cgroup}, answer="gate")

    async def start(self, fields: dict[str, Any], task: bytes) -> None:
        """Start the harness, once in the life of this sandbox; `started` comes through the stream."""
        await self._line.send("start", fields, task)

    async def message(self, n: int, message_id: str, body: bytes) -> None:
        """Bytes for the harness's stdin; their receipt is a `delivered` frame. Refusals come into `refusals`."""
        for at in range(_PART_BYTES, len(body) + 1, _PART_BYTES):
            part = body[at - _PART_BYTES : at]
            await self._line.send("message", {"n": n, "id": message_id, "more": True}, part)
        rest = len(body) - len(body) % _PART_BYTES
        await self._line.send("message", {"n": n, "id": message_id}, body[rest:])

    async def signal(self, signal_id: str, signum: int, *, to: Literal["group", "all"]) -> None:
        """Once per id, however often it is asked."""
        await self._line.send("signal", {"id": signal_id, "signum": signum, "to": to})

    async def ack(self, src: int) -> None:
        """Frames up to `src` are safe in the history."""
        await self._line.send("ack", {"src": src})

    async def kill(self) -> None:
        """SIGKILL to everything but init."""
        await self._line.send("kill")

    async def quiesce(self) -> Frame:
        """Drain the pipes; answers when all of it is on disk: fields `src`, `inbox`."""
        return await self._ask("quiesce", {}, answer="quiesced")

    async def stat(self) -> Mapping[str, Any]:
        """What init counts: processes, memory_bytes, spool_bytes, …"""
        frame = await self._ask("stat", {}, answer="stat")
        return frame.fields

    async def close(self) -> None:
        """End the line. Idempotent."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._line.close()

    async def _ask(self, verb: str, fields: dict[str, Any], *, answer: str) -> Frame:
        if self.lost is not None:
            raise self.lost
        waiter: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        waiters = self._answers.setdefault(answer, deque())
        waiters.append(waiter)
        self._room.set()  # the answer may be behind more of the stream than is let in otherwise
        try:
            await self._line.send(verb, fields)
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return await waiter
        except TimeoutError:
            raise LinkLost(f"init did not answer {verb} in {ANSWER_LIMIT_S:g} s") from None
        finally:
            waiter.cancel()
            if waiter in waiters:
                waiters.remove(waiter)

    async def _read(self) -> None:
        try:
            while True:
                await self._room.wait()
                for frame in await self._line.receive():
                    self._sort(frame)
                self._changed.set()
        except (LinkLost, LinkRefused) as ended:
            self.lost = ended
            for waiters in self._answers.values():
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_exception(ended)
                waiters.clear()
            self._changed.set()

    def _sort(self, frame: Frame) -> None:
        if frame.src or frame.verb == "gap":
            self._frames.append(frame)
            self._queued_bytes += len(frame.payload) + 64
            if self._queued_bytes > _QUEUE_BYTES and not any(self._answers.values()):
                self._room.clear()
        elif frame.verb in ("held", "released"):
            self.held = frame.verb == "held"
            self.spool_bytes = int(frame.fields.get("spool_bytes", 0))
        elif frame.verb == "refused":
            self.refusals.append(
                Refusal(str(frame.fields.get("code", "")), str(frame.fields.get("why", "")), frame.fields)
            )
        elif waiters := self._answers.get(frame.verb):
            waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(frame)
