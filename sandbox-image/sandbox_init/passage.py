"""One client on its way to the gateway and back.

Bytes pass both ways as they come, an end of either side included; here nobody knows a word of HTTP. Until the first
byte of an answer a gateway that is gone, or not there yet, is dialled again and told everything again: another worker
may have taken its place. From that byte on it is not, because the client may have acted on what it read.

What is in memory is bounded by not reading: neither side is read while the other has not taken what was read before.
"""

from __future__ import annotations

import _socket
import sys
from select import EPOLLERR, EPOLLHUP
from time import monotonic

from sandbox_init.kept import Kept
from sandbox_init.loop import READ, WRITE, would_block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_init.loop import Timer
    from sandbox_init.outlet import Outlet

RETRY_S = 600.0  # for so long a request waits for a gateway
_PAUSE_S = 0.05  # before the second try, then twice as long each time
_LONGEST_PAUSE_S = 1.0
_LINGER_S = 5.0  # after a whole answer, what the client still sends is read and thrown away for so long
_BYTES_PER_SEND = 64 << 10
_READS_PER_TURN = 4
_ABORT = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 s. close() is then a reset


class Passage:
    """States: asking (until the first byte of an answer, with a gateway or without) → answered → closed."""

    def __init__(self, outlet: Outlet, client: _socket.socket) -> None:
        self._outlet = outlet
        self._loop = outlet.loop
        self._client = client
        self._gateway: _socket.socket | None = None
        self._kept = Kept(outlet.directory, outlet.allowance)
        self._sent = 0  # of what is kept, to this gateway
        self._to_client = b""  # read from the gateway, not taken by the client yet
        self._answered = False
        self._client_said_all = False
        self._gateway_said_all = False
        self._gateway_deaf = False  # takes no more; it may still speak
        self._passed_on_end = False  # the gateway knows that the client has said all
        self._client_hung_up = False
        self._gateway_hung_up = False
        self._timer: Timer | None = None
        self._pause_s = _PAUSE_S
        self._dialled_at = 0.0
        self._without_since = 0.0  # monotonic; 0: a gateway is there
        self._closed = False
        client.setblocking(False)
        self._watch()

    # -- from the client -------------------------------------------------------------------------------------------

    def _client_ready(self, events: int) -> None:
        self._safely(self._client_turn, events)

    def _client_turn(self, events: int) -> None:
        if events & EPOLLERR and self._client.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self.close()  # reset: whatever it is, nobody is there to read it
            return
        if events & EPOLLHUP:
            self._client_hung_up = True
            if self._client_said_all and not self._unsent_bytes:
                self.close()
                return
        if events & WRITE and self._to_client:
            self._send(self._to_client)
        if events & ~WRITE and not self._closed:
            self._read_client()
        self._watch()

    def _read_client(self) -> None:
        for _ in range(_READS_PER_TURN):
            if self._client_said_all or not self._may_read_client:
                return
            try:
                size = self._client.recv_into(self._outlet.buffer, self._outlet.room_bytes)
            except OSError as problem:
                if not would_block(problem):
                    self.close()
                return
            if size:
                if not self._gateway_deaf:
                    self._take(self._outlet.buffer[:size])  # else it has its answer, and the rest goes nowhere
            else:
                self._client_said_all = True
                if not self._kept.size or (self._answered and self._gateway is None):
                    self.close()  # it never asked, or has its answer
                    return
            self._push()
            if self._closed:
                return

    @property
    def _unsent_bytes(self) -> int:
        return 0 if self._gateway_deaf and self._answered else self._kept.size - self._sent

    @property
    def _may_read_client(self) -> bool:
        if self._gateway_deaf:
            return self._answered  # else what it will have to be told again must not grow: its end is about to be read
        return self._unsent_bytes < self._outlet.room_bytes

    def _take(self, data: memoryview) -> None:
        try:
            self._kept.add(data, self._sent)
        except OSError:
            self._abort()

    def _push(self) -> None:
        """To the gateway, what there is for it. Dials for the first byte: an idle client costs the gateway nothing."""
        if self._closed:
            return
        gateway = self._gateway
        if gateway is None:
            if not self._timer and not self._answered:
                self._dial()
            return
        try:
            while not self._gateway_deaf and self._sent < self._kept.size:
                data = self._kept.at(self._sent, _BYTES_PER_SEND)
                self._sent += self._tell(gateway, data)
                if not self._kept.whole:
                    self._kept.forget(self._sent)
        except _Later:
            return
        except OSError:  # of the disk
            self._abort()
            return
        if self._client_said_all and not self._passed_on_end and not self._gateway_deaf:
            self._passed_on_end = True
            try:
                gateway.shutdown(_socket.SHUT_WR)
            except OSError:
                self._gateway_deaf = True

    def _tell(self, gateway: _socket.socket, data: bytes | bytearray) -> int:
        """How much of it was taken. Raises _Later."""
        try:
            return gateway.send(data)
        except OSError as problem:
            # Gone, or it has heard enough (a request it refuses unread). What it said last is still to be read, and
            # its end tells which.
            self._gateway_deaf = not would_block(problem)
            raise _Later from None

    # -- the gateway -----------------------------------------------------------------------------------------------

    def _dial(self) -> None:
        """Or later, as often as it takes."""
        self._timer = None
        try:
            gateway = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        except OSError:
            self._dial_again()
            return
        gateway.setblocking(False)
        try:
            gateway.connect(self._outlet.gateway)  # never "in progress" for a unix socket
        except OSError:  # not there, nobody listens, or its queue is full
            gateway.close()
            self._dial_again()
            return
        self._gateway = gateway
        self._dialled_at = monotonic()
        self._sent = 0
        self._gateway_deaf = self._passed_on_end = self._gateway_hung_up = False
        self._push()
        self._watch()

    def _dial_again(self) -> None:
        """Later; unless it has been too long."""
        now = monotonic()
        self._without_since = self._without_since or now
        if now - self._without_since > RETRY_S:
            self._abort()
            return
        self._timer = self._loop.later(self._pause_s, self._dial)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _broken(self) -> None:
        """The gateway is gone without having said its last byte."""
        if self._answered or not self._kept.whole:
            self._abort()
            return
        if monotonic() - self._dialled_at > _LONGEST_PAUSE_S:  # it was there; one that only ever hangs up was not
            self._without_since, self._pause_s = 0.0, _PAUSE_S
        self._drop_gateway()
        self._sent = 0
        self._dial_again()

    def _drop_gateway(self) -> None:
        if self._gateway:
            self._loop.forget(self._gateway.fileno())
            self._gateway.close()
            self._gateway = None
            self._gateway_events = -1

    def _gateway_ready(self, events: int) -> None:
        self._safely(self._gateway_turn, events)

    def _gateway_turn(self, events: int) -> None:
        if events & EPOLLHUP:
            self._gateway_hung_up = True
        if events & WRITE:
            self._push()
        if events & ~WRITE and self._gateway:
            if self._gateway_said_all:
                self._end()  # half-closed before, closed now
            else:
                self._read_gateway()
        self._watch()

    def _read_gateway(self) -> None:
        for _ in range(_READS_PER_TURN):
            if self._to_client or self._gateway is None:
                return
            try:
                size = self._gateway.recv_into(self._outlet.buffer, self._outlet.room_bytes)
            except OSError as problem:
                if not would_block(problem):
                    self._broken()
                return
            if not size:
                if self._answered:
                    self._gateway_said_all = True
                    self._end()
                else:
                    self._broken()
                return
            if not self._answered:
                self._answered = True
                try:
                    self._kept.forget(self._sent)
                except OSError:
                    self._abort()
                    return
            self._send(self._outlet.buffer[:size])

    # -- to the client ---------------------------------------------------------------------------------------------

    def _send(self, data: memoryview | bytes) -> None:
        sent = 0
        try:
            sent = self._client.send(data)
        except OSError as problem:
            if not would_block(problem):
                self.close()
                return
        self._to_client = bytes(data[sent:])

    def _end(self) -> None:
        """The gateway has said all, and the client has been told: before that its end is not read."""
        if self._client_said_all and (self._gateway_deaf or self._passed_on_end):
            self.close()
            return
        try:
            self._client.shutdown(_socket.SHUT_WR)
        except OSError:
            self.close()
            return
        if self._gateway_hung_up:
            self._linger()

    def _linger(self) -> None:
        """The exchange is over for the gateway. A close with unread bytes would be a reset, which may cost the client
        the answer: it is given time to read it and to close."""
        self._drop_gateway()
        self._gateway_deaf = True
        if self._client_said_all:
            self.close()
        elif not self._timer:
            self._timer = self._loop.later(_LINGER_S, self.close)

    def _abort(self) -> None:
        """Close so that the client sees a break and not an end: with a reset."""
        if not self._closed:
            self._client.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, _ABORT)
            self.close()

    def close(self) -> None:
        """Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._timer:
            self._timer.cancel()
        self._drop_gateway()
        self._loop.forget(self._client.fileno())
        self._client.close()
        self._kept.close()
        self._outlet.left(self)

    def _safely(self, turn: Callable[[int], None], events: int) -> None:
        try:
            turn(events)
        except Exception as problem:  # a mistake of ours costs this client its connection, not the sandbox its life
            sys.excepthook(type(problem), problem, problem.__traceback__)
            self._abort()

    # -- what to wait for ------------------------------------------------------------------------------------------

    _client_events = -1  # as the loop watches them now; -1: not at all
    _gateway_events = -1

    def _watch(self) -> None:
        if self._closed:
            return
        events = (READ if not self._client_said_all and self._may_read_client else 0) | (
            WRITE if self._to_client else 0
        )
        self._client_events = self._watch_one(
            self._client, self._client_events, events, self._client_hung_up, self._client_ready
        )
        if self._gateway:
            events = (READ if not self._gateway_said_all and not self._to_client else 0) | (
                WRITE if self._sent < self._kept.size and not self._gateway_deaf else 0
            )
            self._gateway_events = self._watch_one(
                self._gateway, self._gateway_events, events, self._gateway_hung_up, self._gateway_ready
            )

    def _watch_one(
        self, sock: _socket.socket, now: int, events: int, hung_up: bool, handler: Callable[[int], None]
    ) -> int:
        """What is watched from now on. The kernel reports a hang-up as long as anything is watched: of one that is
        known nothing is, until there is something to be done about it."""
        if events == 0 and hung_up:
            self._loop.forget(sock.fileno())
            return -1
        if events != now:
            self._loop.watch(sock.fileno(), events, handler)
        return events


class _Later(Exception):
    """The gateway takes nothing now, or nothing more."""
