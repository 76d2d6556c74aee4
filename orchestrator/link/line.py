"""A greeted connection to one init: frames out and in, in order. Knows neither who speaks nor what a frame is for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.errors import BadInput, LinkLost, LinkRefused
from orchestrator.sandbox import Duplex
from sandbox_init.frames import PROTOCOL_VERSION, Decoder, Frame, ProtocolError, encode

GREET_LIMIT_S: Final = 10.0  # init answers in 4 ms; a loaded host in a second or two
ANSWER_LIMIT_S: Final = 30.0  # to a question behind much of the stream; and for init to take what is sent
_READ_BYTES: Final = 1 << 20
FINAL_REFUSALS: Final = frozenset(
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


class Line:
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
                if frame.verb == "refused" and frame.fields.get("code") in FINAL_REFUSALS:
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
