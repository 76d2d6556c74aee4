"""A run in the foreground: its output here, our signals there, its exit code ours. Knows no option of `carrel run`.

| what happens here | what it does to the execution |
|---|---|
| Ctrl-C | interrupts it (SIGINT to its process group); before it has begun: cancels |
| Ctrl-C again | cancels it: SIGTERM, its grace, SIGKILL |
| Ctrl-C a third time | nothing more: we leave (130) |
| SIGTERM | cancels it, as a local command would end; again: we leave (143) |
| Ctrl-\\, terminal closed (SIGQUIT, SIGHUP) | nothing: we leave, it goes on (131, 129) |
| the connection breaks | nothing: we come back to the byte where we were |
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from orchestrator import profile
from orchestrator.cli import console, endings, fetching, gathering, output, reaching, transcript
from orchestrator.client import AsyncExecution
from orchestrator.client.nouns import Record, event_as_json
from orchestrator.errors import CarrelError, Conflict, NotFound
from orchestrator.events import Event

BOTH = frozenset({"stdout", "stderr"})
CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
READ_BYTES = 64 * 1024
#: On a terminal: how long nothing may happen before it is said what is waited for.
SAID_AFTER_S = 3.0


@dataclass(frozen=True, slots=True)
class Watch:
    """How to watch, and what to do afterwards."""

    interactive: bool = False
    quiet: bool = False
    as_json: bool = False
    downloads: tuple[fetching.Wish, ...] = ()
    remove: bool = False


class _Leave(Exception):
    """The person wants to go; `code` is our exit code."""

    def __init__(self, code: int) -> None:
        self.code = code


class _Early:
    """Keeps signals that come while the submit is under way: whether it was accepted is known only afterwards, and a
    Ctrl-C must not leave something running that nobody watches. A second one ends us at once."""

    def __init__(self) -> None:
        self.came: list[signal.Signals] = []
        for number in CAUGHT:
            signal.signal(number, self._keep)

    def _keep(self, number: int, _frame: object) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came.append(signal.Signals(number))


@dataclass(slots=True)
class _Hands:
    """What a person does to the execution while it is watched."""

    execution: AsyncExecution
    talk: bool
    signals: asyncio.Queue[signal.Signals] = field(default_factory=asyncio.Queue)
    interrupts: int = 0
    cancelled: bool = False

    def catch(self, early: _Early) -> None:
        """From now on signals are ours to interpret; first those that came during the submit."""
        loop = asyncio.get_running_loop()
        for number in CAUGHT:
            loop.add_signal_handler(number, self.signals.put_nowait, number)
        for number in early.came:
            self.signals.put_nowait(number)

    async def act(self, group: asyncio.TaskGroup) -> None:
        """Ends by _Leave only."""
        while True:
            number = await self.signals.get()
            if number in (signal.SIGQUIT, signal.SIGHUP):
                self.say("left; it goes on: carrel logs -f @last")
                raise _Leave(128 + number)
            if number == signal.SIGINT:
                self.interrupts += 1
            if self.interrupts > 2 or (number == signal.SIGTERM and self.cancelled):
                self.say("left; it was asked to end")
                raise _Leave(128 + number)
            # As tasks: while the server is away these wait, and a further Ctrl-C must still be heard.
            group.create_task(self._interrupt() if number == signal.SIGINT and self.interrupts == 1 else self._cancel())

    async def _interrupt(self) -> None:
        try:
            await self.execution.interrupt()
        except Conflict:
            await self._cancel()  # nothing runs yet that could be interrupted
        except CarrelError as refused:
            console.refusal(refused)
        else:
            self.say("interrupted; Ctrl-C again cancels it, Ctrl-\\ leaves it running")

    async def _cancel(self) -> None:
        self.cancelled = True
        try:
            await self.execution.cancel(reason="Ctrl-C" if self.interrupts else "SIGTERM")
        except (Conflict, NotFound):
            return  # it has ended by itself
        except CarrelError as refused:
            console.refusal(refused)
        else:
            self.say("cancelling it; Ctrl-C again leaves at once")

    def say(self, text: str) -> None:
        if self.talk:
            console.note(text)


def run(
    ctx: typer.Context,
    spec: dict[str, Any],
    gathered: Sequence[tuple[Path, str]],
    key: str,
    watch: Watch,
    archive: Path | None = None,
) -> int:
    """Submit and watch to the end; our exit code. `archive`: what it begins with."""
    # On a terminal people are told; into a file or a pipe stderr holds the command's own bytes and nothing else.
    talk = sys.stderr.isatty() and not watch.quiet
    with reaching.client(ctx) as client:
        if gathered:
            if talk:
                console.note(f"uploading {len(gathered)} files")
            spec["files"] = gathering.upload(client, gathered)
        if archive is not None:
            spec["archive"] = client.upload(archive, "archive")["sha256"]
        early = _Early()
        submitted = client.submit(key=key, **spec)
        profile.remember(client.address.url, submitted.id)
    id = submitted.id
    if talk:
        console.note(id)
    try:
        code, record = asyncio.run(_watch(ctx, id, watch, talk, early))
    except _Leave as left:
        return left.code
    except BrokenPipeError:
        console.note(f"nobody reads our output any more; {id} goes on")
        raise
    _complain(record)
    if watch.downloads or watch.remove:
        with reaching.client(ctx, patience_s=reaching.AFTERWARDS_PATIENCE_S) as client:
            for path, place in watch.downloads:
                count = fetching.fetch(client.execution(id), path, place, say=console.note)
                if talk:
                    console.note(f"{path or '/workspace'} → {place} ({count} files)")
            if watch.remove:
                client.execution(id).delete()
    return code


async def _watch(ctx: typer.Context, id: str, watch: Watch, talk: bool, early: _Early) -> tuple[int, Record]:
    outage = reaching.Outage(quiet=watch.quiet)
    async with reaching.watcher(ctx, on_retry=outage.retry) as client:
        execution = client.execution(id)
        hands = _Hands(execution, talk)
        hands.catch(early)
        try:
            async with asyncio.TaskGroup() as group:
                acting = group.create_task(hands.act(group))
                telling = group.create_task(_tell(execution, talk))
                if watch.interactive:
                    _forward_stdin(execution, talk)
                await _follow(execution, watch.as_json, outage)
                record = await execution.wait()
                acting.cancel()
                telling.cancel()
        except BaseExceptionGroup as several:
            for kind in (_Leave, BrokenPipeError, CarrelError, OSError):
                found = _first(several, kind)
                if found is not None:
                    raise found from None
            raise
        return endings.exit_code(record, interrupted=hands.interrupts > 0), record


async def _tell(execution: AsyncExecution, talk: bool) -> None:
    """Say it when nobody takes it: an installation without a worker looks like one that is slow."""
    if not talk:
        return
    await asyncio.sleep(SAID_AFTER_S)
    with contextlib.suppress(CarrelError):
        if (await execution.refresh()).state == "QUEUED":
            console.note("queued: no worker has taken it yet (`carrel stats` shows the workers)")


def _first(group: BaseExceptionGroup[BaseException], kind: type[BaseException]) -> BaseException | None:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found = _first(error, kind)
            if found is not None:
                return found
        elif isinstance(error, kind):
            return error
    return None


async def _follow(execution: AsyncExecution, as_json: bool, outage: reaching.Outage) -> None:
    writer = output.Writer()
    shown = _as_json if as_json else transcript.Transcript(BOTH, colour=console.colourful()).pieces
    async with aclosing(execution.batches()) as batches:
        async for batch in batches:
            outage.over()
            for descriptor, data in shown(batch.events):
                await writer.write(descriptor, data)


def _as_json(events: Iterable[Event]) -> Iterator[tuple[int, bytes]]:
    lines = b"".join(event_as_json(event) + b"\n" for event in events)
    if lines:
        yield 1, lines


def _complain(record: Record) -> None:
    said, remedy = endings.complaint(record)
    if said:
        console.error(said, remedy)


def _forward_stdin(execution: AsyncExecution, talk: bool) -> None:
    """Every line of our stdin becomes a message, in order, one at a time. Its end is not passed on: others may still
    send (decisions/0030).

    A thread, because a file cannot be waited for; a daemon, because nobody waits for a line that never comes.
    """
    loop = asyncio.get_running_loop()

    def send(content: bytes) -> bool:
        try:
            text: str | bytes = content.removesuffix(b"\n").decode()
        except UnicodeDecodeError:
            text = content
        try:
            asyncio.run_coroutine_threadsafe(execution.send(text), loop).result()
        except (Conflict, NotFound, RuntimeError):
            return False  # it has ended, or we have left
        except CarrelError as refused:
            console.refusal(refused)
            console.note("no more of stdin is forwarded")
            return False
        return True

    def forward() -> None:
        rest = b""
        while piece := os.read(0, READ_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            if not all(send(one + b"\n") for one in lines):
                return
        if rest and not send(rest):
            return
        if talk:
            console.note("our stdin has ended; it is not told so, and `carrel send` still reaches it")

    threading.Thread(target=forward, name="stdin", daemon=True).start()
