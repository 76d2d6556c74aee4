"""PID 1: puts the rooms together, reaps, and ends. What `__main__` runs.

The order at start matters: first the way to `ctl` and `spool` is shut, so that their own modes do not matter to any
uid but root's (a worker that is not root owns them, and the harness is its uid); then the spawner is forked, while
this process is small and owns nothing; then the spool; then the socket, last, because a connection means readiness.

Ending: SIGTERM and SIGINT (the engine stops the container) kill everything and leave no exit frame, so that the host
can tell "init was ended" from "the harness ended". An unforeseen error ends PID 1 the same way: loudly, with no frame.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # no stub; `signal` itself needs enum
import _socket
import os
import sys

from sandbox_init import spawner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from sandbox_init.frames import Frame, Value
    from sandbox_init.outlet import Outlet

PRIVATE = "/run/carrel"
CTL = "/run/carrel/ctl"
SPOOL = "/run/carrel/spool"
_ENDED_BY_SIGNAL = 128
_OOM_FILES = (
    "/sys/fs/cgroup/work/memory.events",
    "/sys/fs/cgroup/memory.events",
    "/sys/fs/cgroup/memory/work/memory.oom_control",
    "/sys/fs/cgroup/memory/memory.oom_control",
)
_MEMORY_FILES = (
    "/sys/fs/cgroup/work/memory.current",
    "/sys/fs/cgroup/memory.current",
    "/sys/fs/cgroup/memory/work/memory.usage_in_bytes",
    "/sys/fs/cgroup/memory/memory.usage_in_bytes",
)


def main() -> NoReturn:
    if os.getpid() != 1:
        sys.exit("init must be PID 1 of its own pid namespace: it kills and reaps everything it can see")
    os.chmod(PRIVATE, 0o700)
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    spawner_pid = os.fork()
    if spawner_pid == 0:
        ours.close()
        spawner.run(theirs)
    theirs.close()
    Init(ours, spawner_pid).run()


class Init:
    """The living whole."""

    def __init__(self, control: _socket.socket, spawner_pid: int) -> None:
        # Imported only now: the spawner does not need them, and what it does not load it does not hold.
        from sandbox_init.connections import Hall, say_ready
        from sandbox_init.gate import Gate
        from sandbox_init.harness import Harness
        from sandbox_init.loop import Loop
        from sandbox_init.spool import Spool
        from sandbox_init.verbs import Desk

        self._children: dict[int, Callable[[int], None]] = {}
        self._stopping = False
        self._retrying = False
        self._outlet: Outlet | None = None
        self.loop = Loop()
        self._catch_signals()
        self.gate = Gate(self.loop, control, spawner_pid)
        self._children[spawner_pid] = lambda _: self.gate.spawner_gone()
        found: list[Frame] = []
        self.spool = Spool(SPOOL, lambda frame: found.append(frame) if frame.verb in _TELLING else None)
        self.harness = Harness(self.loop, self.gate, self.spool, self.reap, oom_kills)
        for frame in found:
            self.harness.recover(frame)
        self.harness.on_ended = self._harness_ended
        hall = Hall(self.loop, self.spool, CTL)
        hall.desk = Desk(
            self.loop,
            hall,
            self.gate,
            self.spool,
            self.harness,
            self.reap,
            self.shutdown,
            self.open_outlet,
            self._measure,
            os.environ.get("CARREL_SANDBOX_ID", ""),
        )
        self.loop.after_every_batch(self._retry_disk)
        say_ready(self.loop, CTL)
        self.gate.seal()

    def run(self) -> NoReturn:
        self.loop.run()
        raise AssertionError("the loop does not end")

    def reap(self, pid: int, reaped: Callable[[int], None]) -> None:
        """Call `reaped(wait status)` when `pid` has ended."""
        self._children[pid] = reaped

    def open_outlet(self, port: int) -> None:
        """Listen on loopback for what goes to the gateway. Idempotent. Raises OSError."""
        from sandbox_init.outlet import Outlet  # not held where nobody asks for it

        self._outlet = self._outlet or Outlet(self.loop, CTL + "/gateway.sock", SPOOL)
        self._outlet.open(port)

    # -- signals ---------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> None:
        from sandbox_init.loop import READ

        read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        _signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in (_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT):
            _signal.signal(number, lambda _number, _frame: None)
        self.loop.watch(read_fd, READ, lambda _: self._signalled(read_fd))

    def _signalled(self, fd: int) -> None:
        from sandbox_init.verbs import kill_all

        caught = os.read(fd, 4096)
        for number in (_signal.SIGTERM, _signal.SIGINT):
            if number in caught:
                kill_all()
                os._exit(_ENDED_BY_SIGNAL + number)
        self.gate.look_at_links()
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            reaped = self._children.pop(pid, None)
            if reaped:  # otherwise an orphan of the harness: its end interests nobody, its zombie is gone
                reaped(status)

    # -- the disk --------------------------------------------------------------------------------------------------

    def _retry_disk(self) -> None:
        if self.spool.unsynced and not self._retrying:
            self._retrying = True
            self.loop.later(0.25, self._retry_disk_now)

    def _retry_disk_now(self) -> None:
        self._retrying = False
        self.spool.retry()
        self.harness.consider_holding()

    # -- the end ---------------------------------------------------------------------------------------------------

    def shutdown(self, grace_s: int) -> None:
        """End the harness, then this sandbox. The exit frame is on disk before PID 1 goes."""
        from sandbox_init.verbs import kill_all

        if self._stopping:
            return
        self._stopping = True
        if self.harness.state != "running":
            self._harness_ended()
            return
        self.harness.signal("shutdown", _signal.SIGTERM, "group")
        self.loop.later(grace_s, kill_all)

    def _harness_ended(self) -> None:
        from sandbox_init.verbs import kill_all

        if self._stopping:
            kill_all()
            os._exit(0)

    # -- figures ---------------------------------------------------------------------------------------------------

    def _measure(self) -> dict[str, Value]:
        processes = sum(name.isdigit() for name in os.listdir("/proc"))
        with open("/proc/self/status", "rb") as file:
            status = file.read()
        return {
            "processes": processes - 1 - bool(self.gate.spawner_pid),
            "memory_bytes": _first_number(_MEMORY_FILES),
            "oom_kills": oom_kills(),
            "outlet_connections": len(self._outlet.passages) if self._outlet else 0,
            "init_rss_anon_kb": int(status.split(b"RssAnon:", 1)[1].split(None, 1)[0]),
        }


_TELLING = ("started", "delivered", "exit")


def _first_number(paths: tuple[str, ...]) -> int:
    for path in paths:
        try:
            with open(path, "rb") as file:
                return int(file.read(32))
        except (OSError, ValueError):
            continue
    return -1


def oom_kills() -> int:
    """How many processes the kernel has killed here for want of memory; 0 where it does not say (v2: `oom_kill` of
    memory.events; v1: of memory.oom_control; of `work` if there is one, else of the container)."""
    for path in _OOM_FILES:
        try:
            with open(path, "rb") as file:
                words = file.read(1024).split()
        except OSError:
            continue
        for index, word in enumerate(words[:-1]):
            if word == b"oom_kill":
                return int(words[index + 1])
    return 0
