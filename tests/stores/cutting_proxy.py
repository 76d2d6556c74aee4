"""A line between client and server that loses replies: what was asked was done, and the asker does not know."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path


class CuttingProxy:
    """Listens on a unix socket, forwards to another. Before each reply it asks `cut()`: if so, both lines are closed
    instead of passing it on. The server has executed the request by then."""

    def __init__(self, path: Path, target: Path, cut: Callable[[], bool]) -> None:
        self.url = f"unix://{path}"
        self.cuts = 0
        self._path = path
        self._target = target
        self._cut = cut

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[CuttingProxy]:
        server = await asyncio.start_unix_server(self._serve, self._path)
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_unix_connection(self._target)

        async def requests() -> None:
            while data := await reader.read(1 << 16):
                back_writer.write(data)
                await back_writer.drain()

        async def replies() -> None:
            while data := await back_reader.read(1 << 16):
                if self._cut():
                    self.cuts += 1
                    return
                writer.write(data)
                await writer.drain()

        both = [asyncio.create_task(requests()), asyncio.create_task(replies())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            for one in (writer, back_writer):
                one.close()
