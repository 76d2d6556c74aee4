"""Frames to one init: the owner's line, a viewer's line, and what a dead init left on disk.

Speaks the protocol of `sandbox-image/PROTOCOL.md` over any Duplex. Knows who may say what and which answer belongs to
which question; does not know what an execution is, where the bytes travel, or what becomes of a frame.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

from orchestrator.errors import BadInput, Conflict, LinkLost, LinkRefused
from orchestrator.sandbox import Duplex
from sandbox_init.frames import MAX_FRAME_BYTES, PREFIX, PROTOCOL_VERSION, Decoder, Frame, ProtocolError, encode

__all__ = [
    "DeadSpool",
    "ExecExit",
    "ExecOutput",
    "ExecStarted",
    "Frame",
    "Hello",
    "OwnerLink",
    "Refusal",
    "ViewerLink",
    "another_owns",
]

GREET_LIMIT_S: Final = 10.0  # init answers in 4 ms; a loaded host in a second or two
ANSWER_LIMIT_S: Final = 30.0  # to a question behind much of the stream; and for init to take what is sent
_READ_BYTES: Final = 1 << 20
_PART_BYTES: Final = 512 << 10  # of a message; a frame takes twice that
_QUEUE_BYTES: Final = 4 << 20  # frames read and not yet taken; above it the stream waits, which costs init nothing
_FINAL_REFUSALS: Final = frozenset(
    {
        "hello_first",
        "bad_hello",
        "protocol",
        "stale_epoch",
        "superseded",
        "too_many_connections",
        "not_allowed",
        "slow",
    }
)


@dataclass(frozen=True, slots=True)
class Hello:
    """init's answer to a greeting: where it stands. `state`: idle, running, ended or lost (see the protocol)."""

    protocol: int
    sandbox_id: str
    epoch: int
    state: str
    started: bool
    ended: bool
    last_src: int
    oldest_src: int
    accepted_n: int
    delivered_n: int
    acked_src: int
    held: bool
    gate_open: bool
    spawner_pid: int
    harness_pid: int
    assignment: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, frame: Frame) -> Hello:
        """Raises LinkRefused where init speaks another protocol."""
        said = frame.fields
        protocol = int(said.get("protocol", 0))
        if protocol != PROTOCOL_VERSION:
            raise LinkRefused(f"init speaks protocol {protocol}, this process {PROTOCOL_VERSION}", why="protocol")
        return cls(
            protocol=protocol,
            sandbox_id=str(said.get("sandbox_id", "")),
            epoch=int(said.get("epoch", 0)),
            state=str(said.get("state", "idle")),
            started=bool(said.get("started", False)),
            ended=bool(said.get("ended", False)),
            last_src=int(said.get("last_src", 0)),
            oldest_src=int(said.get("oldest_src", 1)),
            accepted_n=int(said.get("accepted_n", 0)),
            delivered_n=int(said.get("delivered_n", 0)),
            acked_src=int(said.get("acked_src", 0)),
            held=bool(said.get("held", False)),
            gate_open=said.get("gate") == "open",
            spawner_pid=int(said.get("spawner_pid", 0)),
            harness_pid=int(said.get("harness_pid", 0)),
            assignment=said.get("assignment") or {},
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """init did not do what a frame asked for, and said why; the line goes on. `code` as in the protocol."""

    code: str
    why: str
    fields: Mapping[str, Any]


class _Line:
    """A greeted connection: sends frames, hands out what comes, in order."""

    def __init__(self, duplex: Duplex) -> None:
        self._duplex = duplex
        self._decoder = Decoder()
        self._early: deque[Frame] = deque()  # frames that came in one read with the answer to the greeting

    async def greet(self, fields: dict[str, Any]) -> Hello:
        await self.send("hello", {"protocol": PROTOCOL_VERSION, **fields})
        try:
            async with asyncio.timeout(GREET_LIMIT_S):
                frames = await self.receive()
        except TimeoutError:
            raise LinkLost(f"init did not answer a greeting in {GREET_LIMIT_S:g} s", silent=True) from None
        first = frames[0]
        self._early.extend(frames[1:])
        if first.verb != "hello":
            raise LinkLost(f"init answered a greeting with {first.verb!r}")
        return Hello.of(first)

    async def send(self, verb: str, fields: dict[str, Any] | None = None, payload: bytes = b"") -> None:
        """Raises LinkLost; BadInput for what does not fit a frame."""
        try:
            data = encode(Frame(verb, fields, payload))
        except ProtocolError as wrong:
            raise BadInput(f"{verb}: {wrong}", field=verb, remedy="send less, or as a file") from None
        try:
            self._duplex.writer.write(data)
            async with asyncio.timeout(ANSWER_LIMIT_S):
                await self._duplex.writer.drain()
        except TimeoutError:
            raise LinkLost(f"init took nothing for {ANSWER_LIMIT_S:g} s") from None
        except (OSError, RuntimeError) as broken:  # RuntimeError: the transport was closed under us
            raise LinkLost(f"the line to init broke: {broken}") from None

    async def receive(self) -> list[Frame]:
        """At least one frame. Raises LinkLost at the end of the line, LinkRefused when init closed it with a reason."""
        if self._early:
            frames = list(self._early)
            self._early.clear()
            return frames
        while True:
            try:
                data = await self._duplex.reader.read(_READ_BYTES)
            except OSError as broken:
                raise LinkLost(f"the line to init broke: {broken}") from None
            if not data:
                raise LinkLost("init closed the line")
            try:
                frames = self._decoder.feed(data)
            except ProtocolError as wrong:
                raise LinkLost(f"what came from init is no frame: {wrong}") from None
            for frame in frames:
                if frame.verb == "refused" and frame.fields.get("code") in _FINAL_REFUSALS:
                    code = str(frame.fields["code"])
                    why = f"init refused: {frame.fields.get('why') or code}"
                    raise LinkRefused(why, why=code, epoch=frame.fields.get("epoch", 0))
            if frames:
                return frames

    async def close(self) -> None:
        await self._duplex.close()


def another_owns(refused: LinkRefused, epoch: int) -> bool:
    """True when init refused the owner of `epoch` because a later one was there. One of the same epoch is a line of
    our own that came after."""
    return refused.data.get("why") in ("stale_epoch", "superseded") and int(refused.data.get("epoch", 0)) > epoch


class OwnerLink:
    """The line of the one who holds the lease: streams the spool, starts, steers, signals and ends the harness.

    Spool frames come in order through `take`; everything else init says is kept apart, so that a stream nobody takes
    does not delay an answer that is already here. One reader task, ended by `close`.
    """

    def __init__(self, line: _Line, hello: Hello, changed: asyncio.Event) -> None:
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
        line = _Line(duplex)
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


@dataclass(frozen=True, slots=True)
class ExecStarted:
    """The command runs; `pid` as the sandbox sees it."""

    pid: int


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """Bytes it printed, as read."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True)
class ExecExit:
    """It ended: by `exit_code` or by `signal`. `error`: why it could not be started (code 126 or 127, as a shell
    has it)."""

    exit_code: int | None
    signal: int | None
    timed_out: bool = False
    error: str = ""


class ViewerLink:
    """A line for looking and for commands beside the harness; needs no epoch, moves no state. As a context manager it
    closes itself."""

    def __init__(self, line: _Line, hello: Hello) -> None:
        self.hello = hello
        self._line = line

    @classmethod
    async def open(cls, duplex: Duplex) -> ViewerLink:
        """Greet as a viewer. Raises LinkLost, LinkRefused."""
        line = _Line(duplex)
        try:
            return cls(line, await line.greet({"role": "viewer"}))
        except BaseException:
            await line.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def exec(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "/workspace",
        stdin: bool = False,
        timeout_s: int | None = None,
        detach: bool = False,
    ) -> AsyncGenerator[ExecStarted | ExecOutput | ExecExit, None]:
        """One command as the harness's user: its pid, its output as it comes, its end (`detach`: only the pid). Closing
        the line ends a command that was not detached. One at a time per line.

        Raises Conflict where init refuses it (no sandbox to run it in any more), LinkLost, LinkRefused."""
        fields: dict[str, Any] = {"id": "exec", "argv": list(argv), "cwd": cwd, "stdin": stdin, "detach": detach}
        if env:
            fields["env"] = dict(env)
        if timeout_s is not None:
            fields["timeout_s"] = timeout_s
        await self._line.send("exec", fields)
        while True:
            for frame in await self._line.receive():
                said = frame.fields
                if frame.verb == "exec_started":
                    yield ExecStarted(int(said["pid"]))
                    if detach:
                        return
                elif frame.verb == "exec_output":
                    yield ExecOutput("stderr" if said.get("stream") == "stderr" else "stdout", frame.payload)
                elif frame.verb == "exec_exit":
                    yield ExecExit(
                        said.get("code"), said.get("signal"), bool(said.get("timed_out")), str(said.get("error") or "")
                    )
                    return
                elif frame.verb == "refused":
                    raise Conflict(
                        f"the command was refused: {said.get('why') or said.get('code')}", why=said.get("code")
                    )

    async def exec_stdin(self, data: bytes) -> None:
        """Bytes for the running command, at most 1 MiB a call."""
        await self._line.send("exec_stdin", payload=data)

    async def exec_eof(self) -> None:
        """No more input for it."""
        await self._line.send("exec_eof")

    async def exec_signal(self, signum: int) -> None:
        """To its process group."""
        await self._line.send("exec_signal", {"signum": signum})

    async def stat(self) -> Mapping[str, Any]:
        """What init counts. Not while a command runs on this line."""
        await self._line.send("stat")
        while True:
            for frame in await self._line.receive():
                if frame.verb == "stat":
                    return frame.fields

    async def close(self) -> None:
        """Idempotent."""
        await self._line.close()


class DeadSpool:
    """The frames an init left on disk, read after its death. Blocking: read it in a thread.

    Reading it while init lives is harmless but may miss the newest: a frame that is not whole yet is taken for torn.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def frames(self, after: int) -> Iterator[Frame]:
        """Frames with src > `after` that are whole, in order. Where the oldest kept is beyond after+1, a `gap` frame
        with `oldest_src` comes first, as init itself would say it. A torn end is cut silently: its bytes were never
        acknowledged to anybody. Raises OSError as reading does (a missing folder is an empty spool)."""
        expected = after + 1
        segments = self._segments()
        for at, (_first, path) in enumerate(segments):
            if at + 1 < len(segments) and segments[at + 1][0] <= expected:
                continue  # all of it was asked not to be told
            for frame in self._whole(path):
                if frame.src < expected:
                    continue
                if frame.src > expected:
                    yield Frame("gap", {"oldest_src": frame.src})
                yield frame
                expected = frame.src + 1

    def started(self) -> bool:
        """True when the harness was started under this spool, as far as can be told: trimmed frames began with it."""
        segments = self._segments()
        if not segments:
            return False
        if segments[0][0] > 1:
            return True
        return any(frame.verb == "started" for frame in self._whole(segments[0][1]))

    def _segments(self) -> list[tuple[int, Path]]:
        try:
            names = [path for path in self.folder.iterdir() if path.suffix == ".frames" and path.stem.isdigit()]
        except FileNotFoundError:
            return []
        return sorted((int(path.stem), path) for path in names)

    @staticmethod
    def _whole(path: Path) -> Iterator[Frame]:
        decoder = Decoder()
        try:
            with path.open("rb") as file:
                while len(head := file.read(PREFIX.size)) == PREFIX.size:
                    size = min(PREFIX.unpack(head)[0], MAX_FRAME_BYTES)
                    # One frame at a time: at bytes that are none, all frames before them are still told.
                    yield from decoder.feed(head + file.read(size))
        except (ProtocolError, FileNotFoundError):  # a page the host never wrote; a segment trimmed meanwhile
            return
