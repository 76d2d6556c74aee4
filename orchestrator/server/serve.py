"""Runs the app under uvicorn, on a port or a unix socket, and ends it so that every stream is told. Knows no port of
ours and reads no setting.

uvicorn tells an app of its end only after all connections are gone, which streams never are by themselves: so here the
streams are told first (`stopping`), given a moment to say "connect again", and only then are connections closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from orchestrator.errors import BadInput
from orchestrator.server.parts import Parts
from orchestrator.server.viewers import ViewerStalled

logger = logging.getLogger(__name__)

GRACE_S: Final = 5
#: Largest message a client may send over a WebSocket: a steering message in JSON escapes.
WEBSOCKET_BYTES: Final = 4 << 20
_BACKLOG: Final = 2048
_STREAMS_LET_GO_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Listening:
    """Where it listens: a URL (`http://host:port` or `http+unix://<path>`), and the port (0 for a unix socket)."""

    url: str
    port: int


def listen(*, host: str = "127.0.0.1", port: int = 0, path: Path | None = None) -> socket.socket:
    """A listening socket. `path`: a unix socket, 0600; a stale one is replaced, a live one is not. Raises BadInput for
    an address that cannot be had."""
    family = socket.AF_UNIX if path is not None else socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if path is not None:
            _bind_unix(made, path)
        else:
            _bind_port(made, host, port)
        made.listen(_BACKLOG)
        made.setblocking(False)
    except OSError as failure:
        made.close()
        where = str(path) if path is not None else f"{host}:{port}"
        raise BadInput(
            f"cannot listen on {where}: {failure.strerror or failure}",
            field="port" if path is None else "socket",
            limit="an address of this machine that nobody uses",
            remedy="choose another, or 0 for any free port",
        ) from None
    return made


def _bind_port(made: socket.socket, host: str, port: int) -> None:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Inherited by accepted ones: a peer that acknowledges nothing or keeps its window shut does not hold the last
    # 64 KiB of a dropped viewer for ever (tcp(7)).
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    made.bind((host, port))


def _bind_unix(made: socket.socket, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.lstat().st_mode) and not _somebody_listens(path):
            path.unlink()
    before = os.umask(0o177)
    try:
        made.bind(str(path))
    finally:
        os.umask(before)


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


@contextlib.asynccontextmanager
async def serving(app: FastAPI, *, at: socket.socket, grace_s: float = GRACE_S) -> AsyncIterator[Listening]:
    """The app answers inside; at the end it is ended: streams are told to connect again, requests under way get
    `grace_s`. Signals are the caller's."""
    server = _Server(_config(app, grace_s), app.state.parts)
    task = asyncio.create_task(server.serve(sockets=[at]), name="uvicorn")
    try:
        await server.up(task)
        yield _where(at)
    finally:
        server.should_exit = True
        await task


async def serve(app: FastAPI, *, at: socket.socket, stop: asyncio.Event, grace_s: float = GRACE_S) -> None:
    """Serve until `stop` is set."""
    async with serving(app, at=at, grace_s=grace_s) as listening:
        logger.info("the api listens", extra={"url": listening.url})
        await stop.wait()


def _where(at: socket.socket) -> Listening:
    name = at.getsockname()
    if at.family == socket.AF_UNIX:
        return Listening(f"http+unix://{quote(name)}", 0)
    host = f"[{name[0]}]" if at.family == socket.AF_INET6 else name[0]
    return Listening(f"http://{host}:{name[1]}", name[1])


def _config(app: FastAPI, grace_s: float) -> uvicorn.Config:
    noise = logging.getLogger("uvicorn.error")
    noise.setLevel(logging.WARNING)  # its INFO lines carry query strings
    noise.addFilter(_not_a_stalled_viewer)
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        http="httptools",
        ws=_Socket,
        ws_max_size=WEBSOCKET_BYTES,
        ws_per_message_deflate=False,  # a few bytes of it unpack to gigabytes
        ws_ping_interval=15.0,
        ws_ping_timeout=20.0,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(grace_s)),
        h11_max_incomplete_event_size=64 << 10,
    )


def _not_a_stalled_viewer(record: logging.LogRecord) -> bool:
    """uvicorn logs whatever leaves an app as a failure of it; this is how a viewer is dropped."""
    return not (record.exc_info and isinstance(record.exc_info[1], ViewerStalled))


class _Socket(WebSocketsSansIOProtocol):
    """Reads nothing from a peer that takes nothing: answers to a flood of pings would pile up in memory otherwise."""

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()


class _Server(uvicorn.Server):
    """Leaves signals alone, and tells the streams before it closes connections."""

    def __init__(self, config: uvicorn.Config, parts: Parts) -> None:
        super().__init__(config)
        self._parts = parts

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def up(self, task: asyncio.Task[Any]) -> None:
        while not self.started:
            if task.done():
                await task
                raise RuntimeError("uvicorn ended before it served")
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        self._parts.stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STREAMS_LET_GO_S):
                await self._parts.alone.wait()
        await super().shutdown(sockets)
