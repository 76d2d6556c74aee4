"""Unix sockets in a slot: dial init, and listen for its one sign of life. Knows no frames and no engine.

A socket's address holds 107 bytes, a data directory may be deeper: both ends are named through `/proc/self/fd/N/`,
N being the open directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from orchestrator.errors import LinkLost
from orchestrator.sandbox import Duplex

INIT_SOCKET: Final = "init.sock"
READY_SOCKET: Final = "ready.sock"
BUFFER_BYTES: Final = 256 * 1024
DIAL_LIMIT_S: Final = 5.0


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[str]:
    """A short name for `folder`, good while the block runs."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


async def dial(folder: Path, name: str = INIT_SOCKET) -> Duplex:
    """A new stream to whoever listens at `folder/name`. Raises LinkLost when nobody does."""
    end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        end.setblocking(False)
        with _inside(folder) as short:
            await _connect(end, f"{short}/{name}")
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=BUFFER_BYTES)
    except OSError as error:
        end.close()
        raise LinkLost(f"nobody listens in the sandbox: {error.strerror or error}") from error
    except BaseException:
        end.close()
        raise
    return Duplex(reader, writer)


async def _connect(end: socket.socket, address: str) -> None:
    """Not loop.sock_connect: a unix socket whose backlog is full says EAGAIN, which that takes for "in progress" and so
    for success."""
    loop = asyncio.get_running_loop()
    until = loop.time() + DIAL_LIMIT_S
    while True:
        try:
            end.connect(address)
            return
        except BlockingIOError:
            if loop.time() > until:
                raise
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def listening(folder: Path, name: str = READY_SOCKET) -> Iterator[socket.socket]:
    """A non-blocking listener at `folder/name`, which is removed again. One that is there already is taken over: its
    owner died, or asks in other ways too."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        with _inside(folder) as short:
            with contextlib.suppress(FileNotFoundError):
                Path(f"{short}/{name}").unlink()
            listener.bind(f"{short}/{name}")
            if os.geteuid() != 0:
                Path(f"{short}/{name}").chmod(0o666)  # init is root, but not one who passes over permissions
            listener.listen(4)
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError):
            (folder / name).unlink()
