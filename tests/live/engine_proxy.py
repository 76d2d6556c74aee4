"""A way to the engine that misbehaves on request: a unix socket in front of its own. Counts what passes.

Knows HTTP only as far as a request's first line at the start of a read, which is how the SDK sends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from pathlib import Path

ENGINE = Path("/var/run/docker.sock")


class EngineProxy:
    """`lose`: requests (first lines, as patterns) that reach the engine but whose reply is lost, once each. `mute`:
    take connections, answer nothing. `broken`: answer everything with 500."""

    def __init__(self, folder: Path, engine: Path = ENGINE) -> None:
        self.socket = folder / "engine.sock"
        self.lose: list[str] = []
        self.mute = False
        self.broken = False
        self.seen: Counter[str] = Counter()
        self.at_once: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self._engine = engine
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    async def __aenter__(self) -> EngineProxy:
        self._server = await asyncio.start_unix_server(self._serve, str(self.socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.socket.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.mute:
                await asyncio.Event().wait()
            if self.broken:
                await reader.read(65536)
                writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
                await writer.drain()
                return
            await self._pass(reader, writer)
        except (OSError, asyncio.CancelledError):
            return
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_unix_connection(str(self._engine))
        current = ""
        lost = False

        def answered() -> None:
            nonlocal current
            if current:
                self.at_once[current] -= 1
                current = ""

        async def back() -> None:
            while data := await there.read(65536):
                answered()
                if lost:
                    return
                writer.write(data)
                await writer.drain()

        backward = asyncio.create_task(back())
        forward = asyncio.create_task(reader.read(65536))
        try:
            while True:
                await asyncio.wait({forward, backward}, return_when=asyncio.FIRST_COMPLETED)
                if backward.done():
                    forward.cancel()
                    return
                data = forward.result()
                if not data:
                    return
                head = re.match(rb"(GET|POST|DELETE) (?:/v[\d.]+)?(\S+) HTTP", data)
                if head is not None:
                    line = f"{head[1].decode()} {head[2].decode()}"
                    current = re.sub(r"/containers/[^/?]+/", "/containers/ID/", line.partition("?")[0])
                    self.seen[current] += 1
                    self.at_once[current] += 1
                    self.most[current] = max(self.most[current], self.at_once[current])
                    for pattern in list(self.lose):
                        if re.search(pattern, line):
                            self.lose.remove(pattern)
                            lost = True
                onward.write(data)
                await onward.drain()
                forward = asyncio.create_task(reader.read(65536))
        finally:
            answered()
            forward.cancel()
            backward.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await backward
            onward.close()
            with contextlib.suppress(OSError):
                await onward.wait_closed()
