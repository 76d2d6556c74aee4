"""One command beside the harness, for one connection: live bytes, not history.

Its output goes to the connection as it comes, at the connection's pace, and nowhere else. Knows nothing of the spool.
"""

from __future__ import annotations

import os

from sandbox_init.frames import Frame
from sandbox_init.process import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox_init.frames import Value
    from sandbox_init.gate import Gate
    from sandbox_init.loop import Loop, Timer

STDIN_BYTES = 1 << 20  # queued for its stdin; above it the connection is not read
_SIGKILL = 9


class Exec:
    """Answers `exec_started`, `exec_output`…, `exec_exit`, through `answer`. `done` once the last one is given."""

    def __init__(
        self,
        loop: Loop,
        gate: Gate,
        reap: Callable[[int, Callable[[int], None]], None],
        answer: Callable[[Frame], None],
        exec_id: str,
        timeout_s: int,
        detach: bool,
    ) -> None:
        self.done = False
        self.process = Process(loop, gate, reap)
        self._loop = loop
        self._answer: Callable[[Frame], None] | None = answer
        self._id = exec_id
        self._timeout_s = timeout_s
        self._detach = detach
        self._timer: Timer | None = None
        self._timed_out = False
        self._error = ""

    def start(self, argv: list[bytes], env: dict[bytes, bytes], cwd: bytes, stdin: bool) -> None:
        """Raises OSError, ProtocolError: as Process.start."""
        self.process.start(self, argv, env, cwd, stdin=stdin and not self._detach, output=not self._detach)

    def signal(self, signum: int) -> None:
        """To its process group. Nothing happens when it is over."""
        if self.process.alive:
            try:
                os.killpg(self.process.pid, signum)
            except ProcessLookupError:
                return

    def abandon(self) -> None:
        """The connection is gone: nobody is told any more, and it is killed unless it was detached."""
        self._answer = None
        if not self._detach:
            self.process.release()  # a held one would never be drained, so never end
            self.signal(_SIGKILL)

    def _say(self, verb: str, fields: dict[str, Value], payload: bytes = b"") -> None:
        if self._answer:
            self._answer(Frame(verb, {"id": self._id, **fields}, payload))

    def spawned(self, pid: int) -> None:
        if self._answer is None and not self._detach:
            self.signal(_SIGKILL)  # nobody waits for it any more: it never runs
            return
        self._say("exec_started", {"pid": pid})
        self.process.go()
        if self._timeout_s:
            self._timer = self._loop.later(self._timeout_s, self._timeout)

    def _timeout(self) -> None:
        self._timed_out = True
        self.signal(_SIGKILL)

    def not_spawned(self, why: str) -> None:
        self.done = True
        self._say("exec_exit", {"code": 126, "error": why})

    def not_executed(self, error: int) -> None:
        self._error = os.strerror(error)

    def output(self, stream: str, data: bytes) -> None:
        self._say("exec_output", {"stream": stream}, data)

    def stdin_closed(self) -> None:
        return  # what was typed into a program that no longer reads is lost, as in a shell

    def ended(self, code: int, orphans_cut: bool) -> None:
        self.done = True
        if self._timer:
            self._timer.cancel()
        how: dict[str, Value] = {"code": code} if code >= 0 else {"signal": -code}
        if self._timed_out:
            how["timed_out"] = True
        if self._error:
            how["error"] = self._error
        if orphans_cut:
            how["orphans_cut"] = True
        self._say("exec_exit", how)
