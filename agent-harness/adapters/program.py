"""The CLI agent as a child: lines out of its stdout, JSON into its stdin, and its end. Knows no program's language.

It is in a session of its own: the interrupt that is sent to our process group reaches us alone, and we pass it on in
the program's own way. Its stderr is ours, line by line.
"""

from __future__ import annotations

import asyncio
import collections
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LINE_BYTES = 256 << 20  # a program may put a whole conversation into one line
LEAVE_S = 10.0  # after its stdin was closed
KEPT_LINES = 20


class Program:
    """Started by `start`, ended by `end`."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: asyncio.Task[None] | None = None
        self.last_words: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)

    async def start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Raises OSError when it cannot be executed."""
        self._process = await asyncio.create_subprocess_exec(
            *argv,
            env={**os.environ, **env},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LINE_BYTES,
        )
        self._stderr = asyncio.create_task(self._pass_on())

    async def line(self) -> bytes:
        """The next line of its stdout; b"" at its end."""
        assert self._process is not None and self._process.stdout is not None
        return await self._process.stdout.readline()

    async def tell(self, said: Mapping[str, Any]) -> None:
        """One JSON line to its stdin. A program that is gone is noticed at its stdout."""
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(said).encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            return

    def signal(self, number: int) -> None:
        """To all of its process group. Nobody there any more is fine."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                return

    def kill_children(self, since_s: float) -> None:
        """Its children that were started after that moment (seconds since boot) in process groups of their own."""
        assert self._process is not None
        ticks = os.sysconf("SC_CLK_TCK")
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
                parent, group = int(fields[1]), int(fields[2])
                ours = parent == self._process.pid != group
                if ours and int(fields[19]) / ticks >= since_s:
                    os.killpg(group, signal.SIGKILL)
            except (OSError, ValueError):  # it is gone
                continue

    async def end(self) -> int:
        """Close its stdin and wait; one that stays is ended. Its exit code, negative for a signal."""
        if self._process is None:
            return 0
        assert self._process.stdin is not None
        self._process.stdin.close()
        drained = asyncio.create_task(self._drain())
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                await asyncio.wait_for(self._process.wait(), LEAVE_S)
                break
            except TimeoutError:
                self.signal(number)
        code = await self._process.wait()
        self.signal(signal.SIGKILL)  # what it left in its group
        drained.cancel()
        if self._stderr is not None:
            self._stderr.cancel()
        return code

    async def _drain(self) -> None:
        while await self.line():
            pass

    async def _pass_on(self) -> None:
        assert self._process is not None and self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.last_words.append(line.decode(errors="replace").rstrip())
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
