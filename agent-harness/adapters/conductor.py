"""One conversation from its first words to the exit code: a person's words go in, what the program says comes out.

Knows no program's language: claude, codex and pi are each an `Agent`. Exit codes are honest whatever the program's own:
0 it said it was done · 1 it failed, and how was said · 75 it was interrupted and nobody is there to go on with.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from adapters.ears import message_of
from adapters.notes import Message
from adapters.program import Program
from adapters.prompt import first_words
from adapters.stage import NO_MODEL, Stage, stage_of

STDIN_LINE_BYTES = 16 << 20


@dataclass(frozen=True)
class TurnEnd:
    """The program waits for us. `failed`: why, "" = it is done. `interrupted`: because we asked it to stop."""

    text: str = ""
    failed: str = ""
    interrupted: bool = False
    stop_reason: str = "end_turn"


class Agent(Protocol):
    """One program. `steps`: how often it asked its model so far."""

    steps: int

    async def start(self) -> bool:
        """Start it, in its old session where the notes name one. True = it remembers. Raises OSError."""

    async def prompt(self, text: str, message: Message | None) -> None:
        """Begin a turn. `message`: whose words these are; None = ours."""

    async def steer(self, message: Message) -> bool:
        """Say it in the turn under way. False: not possible, it is to be a turn of its own."""

    async def interrupt(self) -> None:
        """Stop the turn at once; its end follows."""

    async def hear(self, line: bytes) -> TurnEnd | None:
        """One line of the program's, told on as events. A TurnEnd when it waits for us and nothing that it was told is
        still unread."""


class Conductor:
    """Serves one attempt."""

    def __init__(self, agent: Agent, stage: Stage, program: Program) -> None:
        self._agent = agent
        self._stage = stage
        self._program = program
        self._happenings: asyncio.Queue[tuple[str, Any]] = asyncio.Queue(1)  # one: what is not taken stays in the pipe
        self._later: list[Message] = []
        self._busy = False
        self._deaf = False  # stdin has ended
        self._stopping = ""
        steps = stage.environment.get("LIMIT_STEPS", "")
        self._steps = int(steps) if steps.isdigit() else 0

    async def serve(self) -> int:
        """The exit code."""
        stage = self._stage
        in_doubt = stage.doubt()
        remembers = await self._agent.start()
        feeding = [asyncio.create_task(feed) for feed in (self._hear_person(), self._hear_program())]
        self._listen_to_signals()
        try:
            waiting = list(stage.notes.untaken.values())
            if remembers and stage.notes.asked:
                # It had come to rest: what wakes it is a message, not us.
                if waiting:
                    await self._prompt(waiting.pop(0))
            else:
                await self._begin(first_words(stage.task(), resumed=stage.resumed, remembers=remembers, calls=in_doubt))
            for message in waiting:
                await self._say(message)
            return await self._converse()
        finally:
            for one in feeding:
                one.cancel()
            await asyncio.gather(*feeding, return_exceptions=True)
            await self._program.end()
            stage.voice.flush()

    async def _converse(self) -> int:
        while True:
            kind, what = await self._next()
            if kind == "line":
                end = await self._agent.hear(what)
                if end is not None and (code := await self._turn_over(end)) is not None:
                    return code
                if self._steps and self._agent.steps > self._steps and self._busy and not self._stopping:
                    self._stopping = f"the limit of {self._steps} steps is reached"
                    await self._agent.interrupt()
            elif kind == "message":
                if self._stage.notes.heard(what):
                    self._stage.voice.say("ack", id=what.id)
                    await self._say(what)
            elif kind == "silence":
                self._deaf = True
                if not self._busy:
                    return 75
            elif kind == "interrupt":
                if self._busy:
                    await self._agent.interrupt()
            elif kind == "cancel":
                self._program.signal(signal.SIGTERM)
                self._stopping = self._stopping or "it was cancelled"
            else:
                return await self._gone()

    async def _next(self) -> tuple[str, Any]:
        while (due_s := self._stage.voice.due_s()) is not None:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._happenings.get(), due_s)
            self._stage.voice.flush()
        return await self._happenings.get()

    async def _say(self, message: Message) -> None:
        if not self._busy:
            await self._prompt(message)
        elif message.mode == "follow_up" or not await self._agent.steer(message):
            self._later.append(message)

    async def _prompt(self, message: Message) -> None:
        await self._begin(message.text, message)

    async def _begin(self, text: str, message: Message | None = None) -> None:
        self._stage.notes.asks(False)
        self._busy = True
        await self._agent.prompt(text, message)

    async def _turn_over(self, end: TurnEnd) -> int | None:
        self._busy = False
        stage = self._stage
        for id in list(stage.notes.calls):
            stage.called(id, "cancelled", text="it had not ended")
        if self._stopping:
            stage.voice.say("error", text=self._stopping)
            stage.voice.say("result", stop_reason="max_steps", text=end.text)
            return 1
        if self._later:
            await self._prompt(self._later.pop(0))
            return None
        if end.interrupted:
            stage.notes.asks(True)
            stage.voice.say("ask", text="Interrupted. What now?")
            return 75 if self._deaf else None
        if end.failed:
            stage.voice.say("error", text=end.failed)
            stage.voice.say("result", stop_reason="error", text=end.failed)
            return 1
        stage.voice.say("result", stop_reason=end.stop_reason, text=end.text)
        return 0

    async def _gone(self) -> int:
        """The program ended though it was not asked to."""
        code = await self._program.end()
        if self._stopping:
            return 143
        how = f"signal {-code}" if code < 0 else f"status {code}"
        words = "\n".join(self._program.last_words)
        self._stage.voice.say("error", text=f"the program ended with {how} in the middle of its work\n{words}".strip())
        return code if code > 0 else 1

    async def _hear_program(self) -> None:
        while line := await self._program.line():
            await self._happenings.put(("line", line))
        await self._happenings.put(("gone", None))

    async def _hear_person(self) -> None:
        reader = asyncio.StreamReader(limit=STDIN_LINE_BYTES)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # longer than any message may be; dropped by the reader
                self._stage.voice.say("error", text=f"a message of more than {STDIN_LINE_BYTES} bytes was dropped")
                continue
            if not line:
                break
            if (message := message_of(line)) is not None:
                await self._happenings.put(("message", message))
        await self._happenings.put(("silence", None))

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        waiting: set[asyncio.Task[None]] = set()

        def happen(kind: str) -> None:
            task = loop.create_task(self._happenings.put((kind, None)))
            waiting.add(task)
            task.add_done_callback(waiting.discard)

        loop.add_signal_handler(signal.SIGINT, happen, "interrupt")
        loop.add_signal_handler(signal.SIGTERM, happen, "cancel")


def conduct(name: str, make: Callable[[Stage, Program], Agent]) -> int:
    """Run one adapter in this process's environment. The exit code; 78 when its program cannot be started."""
    stage, program = stage_of(name), Program()
    if not stage.environment.get("MODEL"):
        stage.voice.say("error", text=NO_MODEL)
        return 78
    try:
        return asyncio.run(Conductor(make(stage, program), stage, program).serve())
    except FileNotFoundError as missing:
        stage.voice.say("error", text=f"{missing.filename} is not in this image: carrel image build --harness {name}")
        return 78
