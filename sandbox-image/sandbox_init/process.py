"""One started program: its three pipes, and when it has really ended.

Ended means reaped *and* drained: every byte it wrote before its end has been handed on. A child it left behind that
keeps a pipe open does not hold the end up (`_LINGER_S`). Bytes are handed on as they are read, at most 64 KiB at once.

Knows nothing of frames, spools or connections: the listener does.
"""

from __future__ import annotations

import fcntl
import os
from errno import EPIPE

from sandbox_init.gate import Spawn
from sandbox_init.loop import READ, WRITE, would_block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from sandbox_init.gate import Gate
    from sandbox_init.loop import Loop

    class Listener(Protocol):
        """Whose program it is."""

        def spawned(self, pid: int) -> None:
            """It has a pid and waits for `Process.go`."""

        def not_spawned(self, why: str) -> None:
            """It never will be. Nothing follows."""

        def not_executed(self, error: int) -> None:
            """Its program could not be executed; `ended` with 126 or 127 follows."""

        def output(self, stream: str, data: bytes) -> None:
            """1 to 65,536 bytes of "stdout" or "stderr"."""

        def stdin_closed(self) -> None:
            """It closed its stdin or ended: what was not written never will be."""

        def ended(self, code: int, orphans_cut: bool) -> None:
            """Its exit code, or minus the signal that killed it. Nothing follows."""


READ_BYTES = 65_536
_PIPE_MODE = 0o666  # init made the pipe, so `> /dev/stdout` by uid 1000 would be refused: it reopens the inode
_PIPE_BYTES = 256 << 10  # not 1 MiB: the kernel counts all pipes of root on the host against one soft limit of 64 MiB
_READS_PER_TURN = 8  # then others have their turn
_LINGER_S = 0.2
_LINGER_TURNS = 10
_FIONREAD = 0x541B


class Process:
    """Start it by `start`; then exactly one of `not_spawned` and `ended` is called, last."""

    def __init__(self, loop: Loop, gate: Gate, reap: Callable[[int, Callable[[int], None]], None]) -> None:
        self.pid = 0
        self.alive = False  # may be signalled by its pid: spawned and not reaped
        self.written_bytes = 0  # to its stdin, in all
        self.queued_bytes = 0  # given to `write`, not written yet
        self._loop = loop
        self._gate = gate
        self._reap = reap
        self._listener: Listener
        self._spawn: Spawn | None = None
        self._outputs: dict[int, str] = {}
        self._held = False
        self._code: int | None = None
        self._idle = True
        self._linger_turns = 0
        self._ended = False
        self._stdin = -1
        self._stdin_open = False
        self._probe = -1  # a reading end of its stdin, once ours is closed
        self._unread_at_close = 0
        self._close_stdin_after = False
        self._queue: list[tuple[memoryview | bytes, Callable[[], None] | None]] = []

    def start(
        self,
        listener: Listener,
        argv: list[bytes],
        env: dict[bytes, bytes],
        cwd: bytes,
        stdin: bool,
        output: bool = True,
    ) -> None:
        """`stdin` False: /dev/null. `output` False: both to /dev/null. Raises OSError when no pipe can be made,
        ProtocolError when argv and environment together pass 1 MiB."""
        self._listener = listener
        opened: list[int] = []
        try:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            opened.append(null)
            theirs = [os.dup(null), os.dup(null), os.dup(null)]
            opened += theirs
            if stdin:
                theirs_in, self._stdin = self._pipe(opened)
                os.close(theirs[0])
                opened.remove(theirs[0])
                theirs[0] = theirs_in
                os.set_blocking(self._stdin, False)
                self._stdin_open = True
            if output:
                for number, stream in ((1, "stdout"), (2, "stderr")):
                    ours, theirs_out = self._pipe(opened)
                    os.close(theirs[number])
                    opened.remove(theirs[number])
                    theirs[number] = theirs_out
                    os.set_blocking(ours, False)
                    if stream == "stdout":
                        _widen(ours)
                    self._outputs[ours] = stream
            self._spawn = Spawn(argv, env, cwd, (theirs[0], theirs[1], theirs[2]), self)
        except BaseException:
            for fd in opened:
                os.close(fd)
            self._outputs.clear()
            self._stdin = -1
            self._stdin_open = False
            raise
        os.close(null)
        self._gate.spawn(self._spawn)

    @staticmethod
    def _pipe(opened: list[int]) -> tuple[int, int]:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        opened += (reader, writer)
        os.fchmod(reader, _PIPE_MODE)
        return reader, writer

    # -- what the gate says ----------------------------------------------------------------------------------------

    def spawned(self, pid: int) -> None:
        self.pid = pid
        self.alive = True
        self._reap(pid, self._reaped)
        self._listener.spawned(pid)

    def go(self) -> None:
        """Let it run, and listen to it."""
        if self._spawn:
            self._spawn.go()
        if not self._held:
            for fd in self._outputs:
                self._watch_output(fd)

    def executed(self) -> None:
        self._spawn = None

    def not_executed(self, error: int) -> None:
        self._spawn = None
        self._listener.not_executed(error)

    def not_spawned(self, why: str) -> None:
        self._ended = True
        self._close_all()
        self._listener.not_spawned(why)

    # -- its output ------------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Stop reading: it will block in `write`. Nothing is lost."""
        if not self._held:
            self._held = True
            for fd in self._outputs:
                self._loop.forget(fd)

    def release(self) -> None:
        if self._held:
            self._held = False
            for fd in list(self._outputs):
                self._watch_output(fd)
            if self._code is not None:
                self.drain()
                self._maybe_ended()

    def drain(self) -> None:
        """Hand on what lies in the pipes at this moment, held or not."""
        for fd in list(self._outputs):
            left = unread_bytes(fd)
            while left > 0 and fd in self._outputs:
                got = self._read(fd, left)
                if got <= 0:
                    break
                left -= got

    def _watch_output(self, fd: int) -> None:
        self._loop.watch(fd, READ, lambda _: self._readable(fd))

    def _readable(self, fd: int) -> None:
        for _ in range(_READS_PER_TURN):
            if fd not in self._outputs or self._held or self._read(fd, READ_BYTES) <= 0:
                break
        self._maybe_ended()

    def _read(self, fd: int, limit: int) -> int:
        """Bytes read and handed on; 0 at the end, -1 when there is nothing now."""
        try:
            data = os.read(fd, min(limit, READ_BYTES))
        except OSError as problem:
            if would_block(problem):
                return -1
            data = b""
        if not data:
            del self._outputs[fd]
            self._loop.forget(fd)
            os.close(fd)
            return 0
        self._idle = False
        self._listener.output(self._outputs[fd], data)
        return len(data)

    # -- its end ---------------------------------------------------------------------------------------------------

    def _reaped(self, status: int) -> None:
        self.alive = False
        self._code = os.waitstatus_to_exitcode(status)
        self._spawn_settled()
        self._close_stdin()
        if self._probe >= 0:
            self._unread_at_close = unread_bytes(self._probe)
            os.close(self._probe)
            self._probe = -1
        if not self._held:
            self.drain()
        self._arm_linger()
        self._maybe_ended()

    def _spawn_settled(self) -> None:
        """Hear why it could not execute before telling that it ended."""
        if self._spawn:
            self._gate.look_at_links()

    def _arm_linger(self) -> None:
        if self._outputs:
            self._idle = True
            self._loop.later(_LINGER_S, self._linger_over)

    def _linger_over(self) -> None:
        if self._ended:
            return
        if self._held:
            self._loop.later(_LINGER_S, self._linger_over)
            return
        self._linger_turns += 1
        if not self._idle and self._linger_turns < _LINGER_TURNS:
            self._arm_linger()
            return
        self.drain()
        self._finish(orphans_cut=bool(self._outputs))

    def _maybe_ended(self) -> None:
        if self._code is not None and not self._outputs:
            self._finish(orphans_cut=False)

    def _finish(self, orphans_cut: bool) -> None:
        if self._ended or self._code is None:
            return
        self._ended = True
        self._close_all()
        self._listener.ended(self._code, orphans_cut)

    def _close_all(self) -> None:
        for fd in self._outputs:
            self._loop.forget(fd)
            os.close(fd)
        self._outputs.clear()
        self._close_stdin()

    # -- its stdin -------------------------------------------------------------------------------------------------

    @property
    def stdin_open(self) -> bool:
        """Something may still be written."""
        return self._stdin_open and not self._close_stdin_after

    def write(self, data: bytes, written: Callable[[], None] | None = None) -> None:
        """Queue for its stdin; `written` is called when the last byte is in the pipe. Ignored when stdin is closed."""
        if not self.stdin_open:
            return
        self._queue.append((data, written))
        self.queued_bytes += len(data)
        self._write_some()

    def close_stdin(self) -> None:
        """Once all that is queued has been written."""
        self._close_stdin_after = True
        self._write_some()

    def unread_stdin_bytes(self) -> int:
        """Written, not read by the program: still in the pipe, or for ever so when it has closed its stdin or ended."""
        if self._stdin_open:
            return unread_bytes(self._stdin)
        return unread_bytes(self._probe) if self._probe >= 0 else self._unread_at_close

    def _write_some(self) -> None:
        while self._queue and self._stdin_open:
            data, written = self._queue[0]
            try:
                count = os.write(self._stdin, data) if data else 0
            except OSError as problem:
                if would_block(problem):
                    self._loop.watch(self._stdin, WRITE, lambda _: self._write_some())
                    return
                if problem.errno != EPIPE:
                    raise
                self._close_stdin()
                self._listener.stdin_closed()
                return
            self.written_bytes += count
            self.queued_bytes -= count
            if count < len(data):
                self._queue[0] = (memoryview(data)[count:], written)
                continue
            del self._queue[0]
            if written:
                written()
        if self._stdin_open:
            self._loop.forget(self._stdin)
            if self._close_stdin_after:
                self._probe_stdin()
                self._close_stdin()

    def _probe_stdin(self) -> None:
        """Once we close our end, only another reading end can tell how much the program has left unread."""
        try:
            self._probe = os.open(f"/proc/self/fd/{self._stdin}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # what is unread now then counts as never read: said again rather than lost

    def _close_stdin(self) -> None:
        if self._stdin_open:
            self._stdin_open = False
            self._unread_at_close = unread_bytes(self._stdin)
            self._loop.forget(self._stdin)
            os.close(self._stdin)
        self._queue.clear()
        self.queued_bytes = 0


def _widen(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except OSError:
        return  # over the host's soft limit: narrower, slower, still right


def unread_bytes(fd: int) -> int:
    """What lies in a pipe, asked at either end."""
    return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, b"\0\0\0\0"), "little")
