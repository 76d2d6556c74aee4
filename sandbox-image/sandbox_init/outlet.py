"""The outlet: 127.0.0.1:port inside the sandbox leads to the worker's gateway, a unix socket, and to nothing else.

Listens, lets in as many as there is room for, and says how much each may hold. What becomes of one is its `Passage`.
"""

from __future__ import annotations

import _socket
from errno import EADDRNOTAVAIL, EAFNOSUPPORT

from sandbox_init.kept import Allowance
from sandbox_init.loop import READ, would_block
from sandbox_init.passage import Passage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandbox_init.loop import Loop

PASSAGES = 256  # at once; more wait to be accepted
_RESERVED_FDS = 160  # of init's own: who cannot speak to it any more cannot end it either
_FDS_PER_PASSAGE = 3  # the client, the gateway, a file
_BUFFER_BYTES = 64 << 10
_BUSY_BUFFER_BYTES = 8 << 10  # of each, where there are many
_BUSY = 16
_SOCKET_BYTES = 256 << 10  # the kernel would let each grow to megabytes; it counts them to our memory
_KEEPALIVE_S = 15  # tells a client that is gone from one that has only shut its sending side: its kernel says so
_FAILED_ACCEPT_PAUSE_S = 0.1


class Outlet:
    """The listening sockets and all passages."""

    def __init__(self, loop: Loop, gateway: str, directory: str) -> None:
        """`gateway`: path of the unix socket, there or not. `directory`: where requests lie that are too large for
        memory."""
        self.loop = loop
        self.gateway = gateway
        self.directory = directory
        self.allowance = Allowance()
        self.buffer = memoryview(bytearray(_BUFFER_BYTES))
        self.passages: set[Passage] = set()
        self._most = _most()
        self._port = 0
        self._listeners: list[_socket.socket] = []

    def open(self, port: int) -> None:
        """Listen on 127.0.0.1, and on ::1 where there is one. Listening there already: nothing. Raises OSError."""
        if port == self._port:
            return
        listeners = [_listen(_socket.AF_INET, "127.0.0.1", port)]
        try:
            listeners.append(_listen(_socket.AF_INET6, "::1", port))
        except OSError as problem:
            if problem.errno not in (EAFNOSUPPORT, EADDRNOTAVAIL):  # no IPv6 here: clients go to 127.0.0.1
                listeners[0].close()
                raise
        self._pause()
        for listener in self._listeners:
            listener.close()
        self._port, self._listeners = port, listeners
        self._resume()

    def left(self, passage: Passage) -> None:
        self.passages.discard(passage)
        if len(self.passages) == self._most - 1:
            self._resume()

    @property
    def room_bytes(self) -> int:
        """What one passage may read at once, and hold: less where there are many."""
        return _BUFFER_BYTES if len(self.passages) <= _BUSY else _BUSY_BUFFER_BYTES

    def _pause(self) -> None:
        for listener in self._listeners:
            self.loop.forget(listener.fileno())

    def _resume(self) -> None:
        if len(self.passages) < self._most:
            for listener in self._listeners:
                self._listen_to(listener)

    def _listen_to(self, listener: _socket.socket) -> None:
        self.loop.watch(listener.fileno(), READ, lambda _: self._arrived(listener))

    def _arrived(self, listener: _socket.socket) -> None:
        while len(self.passages) < self._most:
            try:
                fd, _address = listener._accept()  # type: ignore[attr-defined]  # the C half of accept()
            except OSError as problem:
                if not would_block(problem):  # no descriptors left: asking at once again would only burn time
                    self._pause()
                    self.loop.later(_FAILED_ACCEPT_PAUSE_S, self._resume)
                return
            self.passages.add(Passage(self, _socket.socket(fileno=fd)))
        self._pause()


def _listen(family: int, host: str, port: int) -> _socket.socket:
    listener = _socket.socket(family, _socket.SOCK_STREAM)
    try:
        for level, option, value in (  # accepted sockets inherit them all
            (_socket.SOL_SOCKET, _socket.SO_RCVBUF, _SOCKET_BYTES),
            (_socket.SOL_SOCKET, _socket.SO_SNDBUF, _SOCKET_BYTES),
            (_socket.SOL_SOCKET, _socket.SO_KEEPALIVE, 1),
            (_socket.IPPROTO_TCP, _socket.TCP_KEEPIDLE, _KEEPALIVE_S),
            (_socket.IPPROTO_TCP, _socket.TCP_KEEPINTVL, _KEEPALIVE_S),
            (_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1),
        ):
            listener.setsockopt(level, option, value)
        listener.bind((host, port))
        listener.listen(PASSAGES)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _most() -> int:
    """How many passages at once, as far as our own limit of descriptors goes."""
    import resource

    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return PASSAGES
    return max(4, min(PASSAGES, (soft - _RESERVED_FDS) // _FDS_PER_PASSAGE))
