"""The gate: init's end of the spawner. Hands over requests one at a time, and reports each step of a start.

A new process waits, already with its pid, until `Spawn.go`: so init can put that pid into the spool first. Nothing
passes until the host has said that the spawner is in its cgroup (`open`). Knows nothing of what is started, or why.
"""

from __future__ import annotations

import _socket
import os

from sandbox_init.frames import Frame, encode
from sandbox_init.loop import READ, WRITE, would_block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sandbox_init.loop import Loop

    class Starting(Protocol):
        """Who asked. Either spawned → (executed or not_executed), or not_spawned."""

        def spawned(self, pid: int) -> None:
            """It exists and waits for `Spawn.go`. init is its parent: it will be reaped."""

        def executed(self) -> None:
            """It has become the program, or was killed before it could."""

        def not_executed(self, error: int) -> None:
            """The program could not be executed; the process is about to exit with 126 or 127."""

        def not_spawned(self, why: str) -> None:
            """There is no process and there will be none."""


class Spawn:
    """One process on its way. `fds` (stdin, stdout, stderr) are the gate's to close."""

    def __init__(
        self, argv: list[bytes], env: dict[bytes, bytes], cwd: bytes, fds: tuple[int, int, int], starting: Starting
    ) -> None:
        self.request = encode(Frame("spawn", {"argv": argv, "env": [[k, v] for k, v in env.items()], "cwd": cwd}))
        self.fds = fds
        self.starting = starting
        self.link: _socket.socket | None = None
        self.pid = 0
        self.heard = b""

    def go(self) -> None:
        """Let it become its program."""
        if self.link:
            try:
                self.link.send(b"g")
            except OSError:
                return  # killed while it waited: the reaper tells

    def close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = (-1, -1, -1)


class Gate:
    """One spawner, many spawns. Requests wait in order while the gate is closed or the spawner is busy or frozen."""

    def __init__(self, loop: Loop, control: _socket.socket, spawner_pid: int) -> None:
        self.open = False
        self.spawner_pid = spawner_pid  # 0 once it is gone
        self.problem = "the spawner was killed"
        self._loop = loop
        self._control = control
        self._ready = False  # it has said that it is sealed
        self._queue: list[Spawn] = []
        self._current: Spawn | None = None  # handed over, no answer yet
        self._unsent = b""
        self._heard = b""
        self._linked: list[Spawn] = []
        control.setblocking(False)
        loop.watch(control.fileno(), READ, self._control_ready)

    def seal(self) -> None:
        """Tell the spawner to give up what none may have. Nothing is started before it says that it has."""
        self._control.send(b"s")

    def spawn(self, spawn: Spawn) -> None:
        if self.spawner_pid == 0:
            spawn.close_fds()
            spawn.starting.not_spawned(self.problem)
            return
        self._queue.append(spawn)
        self._next()

    def unlock(self) -> None:
        """The spawner is where it should be. Idempotent."""
        self.open = True
        self._next()

    def look_at_links(self) -> None:
        """Read what new processes have said. To be called before reaping: then each dead one is known by its pid."""
        for spawn in list(self._linked):
            self._link_ready(spawn)

    def spawner_gone(self) -> None:
        """It was reaped, or its socket closed. Everything not yet started never will be."""
        if self.spawner_pid == 0:
            return
        self.spawner_pid = 0
        self._loop.forget(self._control.fileno())
        self._control.close()
        waiting, self._queue = self._queue, []
        if self._current:
            waiting.insert(0, self._current)
            self._current = None
        for spawn in waiting:
            if spawn.fds[0] >= 0:
                spawn.close_fds()
            if spawn.link:
                self._link_ready(spawn)  # its process may have got away with it
            if spawn.pid == 0:
                self._unlink(spawn)
                spawn.starting.not_spawned(self.problem)

    def _next(self) -> None:
        if self._current or not self._queue or not self.open or not self._ready:
            return
        spawn = self._current = self._queue.pop(0)
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        spawn.link = ours
        ours.setblocking(False)
        # C ints by hand: `array` would import all of `collections`, 3 ms and 0.3 MB.
        fds = b"".join([fd.to_bytes(4, "little") for fd in (*spawn.fds, theirs.fileno())])
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fds)]
        try:
            # The spawner has answered the request before this one, so its buffer is empty: the first bytes fit.
            sent = self._control.sendmsg([spawn.request], rights)
        except OSError:
            theirs.close()
            self.spawner_gone()
            return
        theirs.close()
        spawn.close_fds()
        self._unsent = spawn.request[sent:]
        self._linked.append(spawn)
        self._loop.watch(ours.fileno(), READ, lambda _: self._link_ready(spawn))
        if self._unsent:
            self._loop.watch(self._control.fileno(), READ | WRITE, self._control_ready)

    def _control_ready(self, _: int) -> None:
        try:
            if self._unsent:
                self._unsent = self._unsent[self._control.send(self._unsent) :]
                if not self._unsent:
                    self._loop.watch(self._control.fileno(), READ, self._control_ready)
            data = self._control.recv(4096)
        except OSError as problem:
            if not would_block(problem):
                self.spawner_gone()
            return
        if not data:
            self.spawner_gone()
            return
        if not self._ready:
            if data[:1] != b"\0":
                self.problem = data.decode("utf-8", "replace")
                return  # its end follows
            self._ready = True
            data = data[1:]
        self._heard += data
        if len(self._heard) >= 4:
            error, self._heard = int.from_bytes(self._heard[:4], "big"), self._heard[4:]
            spawn, self._current = self._current, None
            if spawn and error:
                self._unlink(spawn)
                spawn.starting.not_spawned(f"fork: {os.strerror(error)}")
            elif spawn and spawn.link is None and spawn.pid == 0:
                spawn.starting.not_spawned("killed before it began")
        self._next()

    def _link_ready(self, spawn: Spawn) -> None:
        """pid, then after `go` an errno or nothing (executed), then the end. All that is there is read: whoever reaps
        the process next must know it by its pid, and why it could not be executed."""
        while spawn.link:
            try:
                data = spawn.link.recv(64)
            except OSError as problem:
                if would_block(problem):
                    return
                data = b""
            spawn.heard += data
            if spawn.pid == 0 and len(spawn.heard) >= 4:
                spawn.pid = int.from_bytes(spawn.heard[:4], "big")
                spawn.starting.spawned(spawn.pid)
            elif len(spawn.heard) >= 8:
                self._unlink(spawn)
                spawn.starting.not_executed(int.from_bytes(spawn.heard[4:8], "big"))
            elif not data:
                self._unlink(spawn)
                if spawn.pid:
                    spawn.starting.executed()
                elif spawn is not self._current:  # else the spawner's answer, on its way, says which of two ends it is
                    spawn.starting.not_spawned("killed before it began")

    def _unlink(self, spawn: Spawn) -> None:
        if spawn.link:
            self._loop.forget(spawn.link.fileno())
            spawn.link.close()
            spawn.link = None
            self._linked.remove(spawn)
