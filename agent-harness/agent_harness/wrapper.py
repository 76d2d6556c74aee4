"""One command, run beside the harness and outliving it. Run by path with the folder of its call as only argument; knows
nothing of the harness.

The folder: `ask.json` (from the harness), then `pid` (by link: whoever makes it first has the call), `out`, `tail` (the
end of an output too long for `out`, while it runs), `in` (a pipe, where there is a terminal), `cwd`, and `rc` (by
rename, so it is whole or not there).

It waits for the command's end, never for the end of its output, which a background job may hold; what such jobs print
later is read on, so that they neither block nor die of it. SIGTERM to it ends the command and all its descendants: this
process is their subreaper, so they cannot leave its tree.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import sys
import time

HEAD_BYTES = 32 << 20  # of an output, kept from its beginning …
TAIL_BYTES = 32 << 20  # … and from its end; what is between is dropped
_HEADER = 20  # of `tail`: how many bytes were written to it in all, in decimal digits
_DRAIN_S = 0.5  # after the end of the command, for what is still in the pipe
_POLITE_S = 0.3  # between SIGTERM and SIGKILL
_RC_BYTES = 256
_SETTLE_S = 0.03  # … which is taken to be empty after so long
_PR_SET_CHILD_SUBREAPER = 36


class Output:
    """Bounded on disk. A full disk loses output, not the command."""

    def __init__(self, folder: str) -> None:
        self.seen = 0
        self.dropped = 0
        self._folder = folder
        self._out = os.open(f"{folder}/out", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._tail = -1
        self._in_tail = 0
        self._closed = False

    def add(self, data: bytes) -> None:
        self.seen += len(data)
        try:
            if self._closed:
                self.dropped += len(data)
                return
            if self._tail < 0:
                room = HEAD_BYTES - (self.seen - len(data))
                os.write(self._out, data[:room])
                data = data[room:]
            if data:
                self._ring(data)
        except OSError:
            self.dropped += len(data)

    def _ring(self, data: bytes) -> None:
        if self._tail < 0:
            self._tail = os.open(f"{self._folder}/tail", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        while data:
            at = self._in_tail % TAIL_BYTES
            part = data[: TAIL_BYTES - at]
            os.pwrite(self._tail, part, _HEADER + at)
            self._in_tail += len(part)
            data = data[len(part) :]
        os.pwrite(self._tail, b"%020d" % self._in_tail, 0)

    def close(self) -> None:
        """The command is over: head, what was left out, tail, in one file. What comes later is only counted."""
        if self._tail < 0 or self._closed:
            return
        self._closed = True
        self.dropped += max(0, self._in_tail - TAIL_BYTES)
        try:
            start = self._in_tail % TAIL_BYTES if self._in_tail > TAIL_BYTES else 0
            size = min(self._in_tail, TAIL_BYTES)
            os.write(self._out, b"\n[... %d bytes left out ...]\n" % self.dropped if self.dropped else b"")
            done = 0
            while done < size:
                at = (start + done) % TAIL_BYTES
                part = os.pread(self._tail, min(1 << 20, TAIL_BYTES - at, size - done), _HEADER + at)
                os.write(self._out, part)
                done += len(part)
            os.unlink(f"{self._folder}/tail")
        except OSError:
            pass


def claim(folder: str, *, to_run: bool = True) -> bool:
    """Make `pid`, whole and only once. False: another has the call. Not `to_run`: nobody is to."""
    mine = f"{folder}/pid.{os.getpid()}"
    who = {"pid": os.getpid(), "started": started(os.getpid())} if to_run else {"pid": 0, "started": 0}
    fd = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    os.write(fd, json.dumps(who).encode())
    os.fsync(fd)
    os.close(fd)
    try:
        os.link(mine, f"{folder}/pid")
    except FileExistsError:
        return False
    finally:
        os.unlink(mine)
    directory = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    os.fsync(directory)
    os.close(directory)
    return True


def stat_fields(pid: int) -> list[bytes]:
    """Of /proc/<pid>/stat, from `state` on; empty when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def started(pid: int) -> int:
    """When it started, in ticks since boot: with the pid, a name no other process ever has. 0: there is none."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else 0


def descendants(root: int) -> list[int]:
    """All below `root` that are not dead yet."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := stat_fields(int(name))) and fields[0] not in (b"Z", b"X"):
            children.setdefault(int(fields[1]), []).append(int(name))
    found: list[int] = []
    level = [root]
    while level:
        level = [child for parent in level for child in children.get(parent, ())]
        found += level
    return found


class Tree:
    """The command and all that came of it, down to daemons in sessions of their own."""

    def __init__(self, child: int) -> None:
        self.child = child
        self.code: int | None = None  # of the command, once it has ended; -n = signal n

    def reap(self) -> None:
        """Take the dead: ours, and those that became ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except OSError:
                return
            if pid == 0:
                return
            if pid == self.child:
                self.code = os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """SIGTERM and a moment, then SIGKILL until none is left. The group at one blow: a fork bomb that stays in it
        cannot outrun the kernel; one that does not is outrun by going round."""
        if self.code is None:
            self._to_group(signal.SIGTERM)
            until = time.monotonic() + _POLITE_S
            while time.monotonic() < until and descendants(os.getpid()):
                time.sleep(0.01)
                self.reap()
        for _ in range(400):
            self._to_group(signal.SIGKILL)
            found = descendants(os.getpid())
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            self.reap()
            if not found:
                return
            time.sleep(0.005)

    def _to_group(self, number: int) -> None:
        if self.code is None:  # once it is reaped its number may be another's
            try:
                os.killpg(self.child, number)
            except OSError:
                pass


def start(ask: dict, folder: str) -> tuple[int, int, int]:  # type: ignore[type-arg]
    """The command: its pid, where its output is read, where its input is written (-1: it has none)."""
    # Read from a file: an argument has 128 KiB, a command need not. The trap carries the directory to the next call.
    note = f"pwd -P > {shlex.quote(folder + '/cwd')}"
    script = f'trap {shlex.quote(note)} EXIT; eval "$(cat {shlex.quote(folder + "/command")})"'
    terminal = bool(ask["tty"])
    if terminal:
        ours, theirs = os.openpty()
        os.set_blocking(ours, False)
        source = ours
    else:
        ours = -1
        source, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            if terminal:
                import fcntl
                import termios

                fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
                os.dup2(theirs, 0)
            else:
                null = os.open("/dev/null", os.O_RDONLY)
                os.dup2(null, 0)
            os.dup2(theirs, 1)
            os.dup2(theirs, 2)
            os.closerange(3, 256)
            os.chdir(ask["cwd"])
            os.execvp(ask["shell"], [ask["shell"], "--noprofile", "--norc", "-c", script])
        except OSError as problem:
            os.write(2, f"the command could not be started: {problem}\n".encode())
        finally:
            os._exit(126)
    os.close(theirs)
    return pid, source, ours


def main(folder: str) -> None:
    """The life of one command."""
    with open(f"{folder}/ask.json", "rb") as file:
        ask = json.load(file)
    told_to_end: list[int] = []
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    wake, waker = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: told_to_end.append(number))
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass  # then a daemon escapes the kill; its process group does not
    if not claim(folder):
        return
    with open(f"{folder}/rc.part", "wb") as file:
        file.write(b" " * _RC_BYTES)  # its room on the disk, should the command fill that
    output = Output(folder)
    typed = -1
    if ask["tty"]:
        os.mkfifo(f"{folder}/in", 0o600)
        typed = os.open(f"{folder}/in", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    began = time.monotonic()
    try:
        child, source, keyboard = start(ask, folder)
    except OSError as problem:  # no process, no terminal to be had
        output.add(f"the command could not be started: {problem}\n".encode())
        finish(folder, output, {"code": 126, "why": "not_started"})
        return
    tree = Tree(child)
    poll = select.poll()
    for fd in (source, wake, typed):
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    ends_at = began + ask["timeout_s"]
    drained_at = quiet_at = 0.0
    why, told = "", False
    while True:
        now = time.monotonic()
        if tree.code is None and not why and (told_to_end or now >= ends_at):
            why = "killed" if told_to_end else "timed_out"
            tree.kill()
        if tree.code is not None and not told:
            drained_at = drained_at or now + _DRAIN_S
            quiet_at = quiet_at or now + _SETTLE_S
            if source < 0 or now >= min(quiet_at, drained_at):
                finish(folder, output, {"code": tree.code, "why": why})
                told = True
        if told and told_to_end:
            tree.kill()
            return
        if told and source < 0 and not descendants(os.getpid()):
            return
        if tree.code is None:
            pause_s = 0.05 if why else min(ends_at - now, 3600.0)
        else:
            pause_s = 1.0 if told else min(quiet_at, drained_at) - now
        for fd, _ in poll.poll(max(0.0, pause_s) * 1000 + 1):
            if fd == wake:
                os.read(wake, 512)
            elif fd == typed:
                _type(typed, keyboard)
            elif (data := _read(source)) is None:
                continue
            elif data:
                output.add(data)
                quiet_at = time.monotonic() + _SETTLE_S if tree.code is not None else 0.0
            else:
                poll.unregister(source)
                source = -1
        tree.reap()


def _read(fd: int) -> bytes | None:
    """None: nothing now. Empty: nothing ever again."""
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return None
    except OSError:  # EIO: a terminal nobody holds any more
        return b""


def _type(typed: int, keyboard: int) -> None:
    """What a terminal has no room for is lost, as on any terminal: waiting for it would deafen us to SIGTERM."""
    try:
        os.write(keyboard, os.read(typed, 4096))
    except OSError:
        pass


def finish(folder: str, output: Output, said: dict) -> None:  # type: ignore[type-arg]
    """Write `rc`. From here on the result is known, whatever happens to anybody."""
    output.close()
    text = json.dumps({**said, "bytes": output.seen, "dropped": output.dropped}).encode()
    fd = os.open(f"{folder}/rc.part", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.write(fd, text.ljust(_RC_BYTES))
    os.fsync(fd)
    os.close(fd)
    os.rename(f"{folder}/rc.part", f"{folder}/rc")


if __name__ == "__main__":
    main(sys.argv[1])
