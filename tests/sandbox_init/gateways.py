"""A worker's end of the way out, for tests of init: a gateway that says what the test says."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from sandbox_init.outlet import PASSAGES
from tests.sandbox_init.boxes import PATIENCE_S


class Gateway:
    """A worker's end: listens at the slot's gateway.sock, in place of whoever did."""

    def __init__(self, slot: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        new = slot / "ctl" / f"g{id(self):x}"
        self._listener.bind(str(new))
        self._listener.listen(PASSAGES)
        self._listener.settimeout(PATIENCE_S)
        new.rename(slot / "ctl" / "gateway.sock")

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def accept(self) -> socket.socket:
        taken, _ = self._listener.accept()
        taken.settimeout(PATIENCE_S)
        return taken

    def die(self) -> None:
        """As the kernel ends a killed worker's: the name stays, and nobody is behind it."""
        self._listener.close()


def exactly(sock: socket.socket, size: int) -> bytes:
    """That many bytes."""
    found = bytearray()
    while len(found) < size:
        data = sock.recv(min(1 << 18, size - len(found)))
        assert data, f"ended after {len(found)} of {size} bytes"
        found += data
    return bytes(found)


def to_end(sock: socket.socket) -> bytes:
    found = bytearray()
    while data := sock.recv(1 << 18):
        found += data
    return bytes(found)


def sent_by_thread(sock: socket.socket, data: bytes) -> threading.Thread:
    """Somebody who writes it all, and does not mind if the other side hangs up."""

    def send() -> None:
        try:
            sock.sendall(data)
        except OSError:
            return

    thread = threading.Thread(target=send)
    thread.start()
    return thread
