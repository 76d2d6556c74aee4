"""Connections: who may come in, what they are sent, and in which order. One socket, many clients.

A connection's answers and its stream of spool frames share one byte stream; a frame is never cut by another. Knows
nothing of what frames ask for: whole frames go to the `Desk`, which answers or refuses.
"""

from __future__ import annotations

import _socket
import os
import sys

from sandbox_init.frames import Decoder, Frame, ProtocolError, encode
from sandbox_init.loop import READ, WRITE, would_block
from sandbox_init.refusal import Refusal
from sandbox_init.tail import Tail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sandbox_init.exec import Exec
    from sandbox_init.loop import Loop
    from sandbox_init.spool import Spool

    class Desk(Protocol):
        def receive(self, connection: Connection, frame: Frame) -> None:
            """Do what it asks. Raises Refusal."""

        def left(self, connection: Connection) -> None:
            """It is closed."""


CONNECTIONS = 128
_READ_BYTES = 65_536
_UNREAD_ANSWERS_BYTES = 4 << 20
_BACKLOG_BYTES = 1 << 20  # of answers; above it an exec is held
_SENDS_PER_TURN = 16
_PEERCRED_BYTES = 12  # pid, uid, gid


class Connection:
    """One client. `role` is empty until its hello was accepted."""

    def __init__(self, hall: Hall, sock: _socket.socket) -> None:
        self.role = ""
        self.epoch = 0
        self.exec: Exec | None = None
        self.tail: Tail | None = None
        self.closed = False
        self._hall = hall
        self._sock = sock
        self._fd = sock.fileno()
        self._decoder = Decoder()
        self._answers: list[tuple[int, memoryview]] = []  # (not before this position of the tail, bytes)
        self._answers_bytes = 0
        self._part_sent = False  # of the first answer: nothing may come between
        self._reading = True
        self._events = READ
        hall.loop.watch(self._fd, READ, self._ready)

    # -- out -------------------------------------------------------------------------------------------------------

    def stream(self, after: int) -> None:
        """From now on send spool frames after `after`, then live."""
        self.tail = Tail(self._hall.spool, after)

    def answer(self, frame: Frame, after_stream: bool = False) -> None:
        """Send it; `after_stream`: not before the frames the spool holds now. Closes a client that does not read."""
        if self.closed:
            return
        data = encode(frame)
        self._answers.append((self._hall.spool.end if after_stream else 0, memoryview(data)))
        self._answers_bytes += len(data)
        if self._answers_bytes > _UNREAD_ANSWERS_BYTES:
            self.close()
            return
        self._hall.needs_pump(self)

    def refuse(self, refusal: Refusal, verb: str = "") -> None:
        """Say so, and close if it is of that kind."""
        self.answer(refusal.frame(verb))
        if refusal.closing and not self.closed:
            self.pump()
            self.close()

    @property
    def backlog(self) -> bool:
        """More answers wait than a program should add to."""
        return self._answers_bytes > _BACKLOG_BYTES

    def pump(self) -> None:
        """Send what can be sent now."""
        if self.closed:
            return
        try:
            more = self._send_some()
        except OSError as problem:
            if not would_block(problem):
                self.close()
                return
            more = True
        self._watch(more)
        if self.exec and not self.backlog:
            self.exec.process.release()

    def _send_some(self) -> bool:
        for _ in range(_SENDS_PER_TURN):
            tail = self.tail
            if self._answers and (
                self._part_sent or not tail or (tail.at_boundary and tail.position >= self._answers[0][0])
            ):
                position, data_view = self._answers[0]
                sent = self._sock.send(data_view)
                self._answers_bytes -= sent
                self._part_sent = sent < len(data_view)
                if self._part_sent:
                    self._answers[0] = (position, data_view[sent:])
                else:
                    del self._answers[0]
            elif tail and tail.gap_from:
                data = encode(Frame("gap", {"oldest_src": tail.gap_from}))
                tail.gap_from = 0
                self._answers.insert(0, (0, memoryview(data)))
                self._answers_bytes += len(data)
            elif tail and tail.behind:
                tail.send(self._fd)
            else:
                return False
        return True

    # -- in --------------------------------------------------------------------------------------------------------

    def pause_reading(self, pause: bool) -> None:
        """Leave what it sends in the socket for now, so that it has to wait."""
        if self._reading == pause:
            self._reading = not pause
            if not self.closed:
                self._watch(bool(self._events & WRITE))

    def _watch(self, write: bool) -> None:
        events = (READ if self._reading else 0) | (WRITE if write else 0)
        if events != self._events:
            self._events = events
            self._hall.loop.watch(self._fd, events, self._ready)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self.pump()
        if events & ~WRITE and not self.closed:
            self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except OSError as problem:
            if not would_block(problem):
                self.close()
            return
        if not data:
            self.close()
            return
        try:
            frames = self._decoder.feed(data)
        except ProtocolError as problem:
            self.refuse(Refusal("not_a_frame", str(problem), closing=True))
            return
        for frame in frames:
            if self.closed:
                return
            try:
                self._hall.desk.receive(self, frame)
            except Refusal as refusal:
                self.refuse(refusal, frame.verb)
            except Exception as problem:  # a mistake of ours costs this client its connection, not the sandbox its life
                sys.excepthook(type(problem), problem, problem.__traceback__)
                self.refuse(Refusal("internal", repr(problem), closing=True), frame.verb)

    def close(self) -> None:
        """Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._hall.loop.forget(self._fd)
        self._sock.close()
        if self.tail:
            self.tail.close()
        self._answers.clear()
        self._hall.left(self)


class Hall:
    """The listening socket and everyone who came in."""

    def __init__(self, loop: Loop, spool: Spool, directory: str) -> None:
        """Listen on `directory`/init.sock, replacing one a dead init left. Raises OSError: with ENOENT or EROFS the
        slot's `ctl` directory is not mounted, or not writable."""
        self.loop = loop
        self.spool = spool
        self.desk: Desk
        self.connections: list[Connection] = []
        self._pump: list[Connection] = []
        self._streamed = spool.end
        self._worker_uid = os.stat(directory).st_uid
        path = directory + "/init.sock"
        new = path + ".new"
        if _exists(new):
            os.unlink(new)
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        # Its mode from its first moment. A worker that is not root must be able to write to root's socket; nobody else
        # comes as far as that: outside, the slots are in a folder of the worker's, inside, /run/carrel is root's.
        before = os.umask(0o111 if self._worker_uid else 0o177)
        try:
            self._listener.bind(new)
        finally:
            os.umask(before)
        self._listener.listen(CONNECTIONS)
        os.rename(new, path)  # who sees the name can connect; the one of a dead init is replaced
        self._listener.setblocking(False)
        loop.watch(self._listener.fileno(), READ, self._arrived)
        loop.after_every_batch(self._pump_all)

    def needs_pump(self, connection: Connection) -> None:
        self._pump.append(connection)

    def streams(self) -> list[Connection]:
        """Those who follow the spool, and the owner."""
        return [one for one in self.connections if one.tail or one.role == "owner"]

    def left(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self.desk.left(connection)

    def _pump_all(self) -> None:
        """Once per turn: many frames appended in it are sent by one call."""
        pump, self._pump = self._pump, []
        if self._streamed != self.spool.end:
            self._streamed = self.spool.end
            pump += [one for one in self.connections if one.tail and one not in pump]
        for connection in pump:
            connection.pump()

    def _arrived(self, _: int) -> None:
        try:
            fd, _address = self._listener._accept()  # type: ignore[attr-defined]  # the C half of accept()
        except OSError:
            return  # gone again, or out of descriptors: the next turn tries again
        sock = _socket.socket(fileno=fd)
        sock.setblocking(False)
        credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _PEERCRED_BYTES)
        pid, uid = (int.from_bytes(credentials[at : at + 4], "little") for at in (0, 4))
        connection = Connection(self, sock)
        self.connections.append(connection)
        # The harness may have the worker's uid. The kernel tells them apart: who is outside our pid namespace is pid 0
        # here, which no process of the sandbox can be (unix(7), pid_namespaces(7)).
        if uid and (uid != self._worker_uid or pid):
            connection.refuse(Refusal("not_allowed", f"uid {uid} may not speak to init", closing=True))
        elif len(self.connections) > CONNECTIONS:
            connection.refuse(Refusal("too_many_connections", f"the limit is {CONNECTIONS}", closing=True))


def _exists(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def say_ready(loop: Loop, directory: str) -> None:
    """Connect once to ready.sock, if somebody listens there: the connection is the news. Closed when they close."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(directory + "/ready.sock")
    except OSError:
        sock.close()
        return

    def over(_: int) -> None:
        try:
            if sock.recv(64):
                return
        except OSError as problem:
            if would_block(problem):
                return
        loop.forget(sock.fileno())
        sock.close()

    loop.watch(sock.fileno(), READ, over)
