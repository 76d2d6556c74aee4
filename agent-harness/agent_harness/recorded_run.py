"""One command, run as if nobody stood between: its output passes through, signals reach it; and the record of its end.

The record is text of at most RESULT_BYTES, for the journal of intents: exit code and the end of what it printed. Knows
nothing of the journal.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
from dataclasses import dataclass
from types import FrameType
from typing import Any

from agent_harness.intents import RESULT_BYTES

TAIL_BYTES = 24 << 10  # of each stream; less where it would not fit as text
_READ_BYTES = 1 << 16
_LINGER_S = 0.2  # after its end: what a background child still prints is not its output
_PR_SET_PDEATHSIG = 1
_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGCONT,
)


@dataclass(frozen=True)
class Recorded:
    """How it ended. `exit_code`: as a shell says it, 128 + n for a signal. `cut_bytes`: printed before what is here."""

    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""
    cut_bytes: int = 0

    def text(self) -> str:
        """As JSON; of long output the end."""
        keep_bytes = TAIL_BYTES
        while True:
            out, err = _end(self.stdout, keep_bytes), _end(self.stderr, keep_bytes)
            cut_bytes = self.cut_bytes + len(self.stdout) - len(out) + len(self.stderr) - len(err)
            fields: dict[str, Any] = {"exit": self.exit_code, **_stream("stdout", out), **_stream("stderr", err)}
            if cut_bytes:
                fields["cut_bytes"] = cut_bytes
            text = json.dumps(fields, ensure_ascii=False)
            if len(text.encode()) <= RESULT_BYTES:
                return text
            keep_bytes //= 2  # control characters take six bytes each

    @classmethod
    def read(cls, text: str) -> Recorded | None:
        """None: it is not one of these."""
        try:
            fields = json.loads(text)
            return cls(
                int(fields["exit"]), _bytes(fields, "stdout"), _bytes(fields, "stderr"), fields.get("cut_bytes", 0)
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def _end(data: bytes, size: int) -> bytes:
    """The last `size` bytes, or a few less: not from within a character on."""
    start = max(0, len(data) - size)
    for _ in range(3):
        if start and start < len(data) and data[start] & 0xC0 == 0x80:
            start += 1
    return data[start:]


def _stream(name: str, data: bytes) -> dict[str, str]:
    """Readable where it is text, exact where it is not."""
    if not data:
        return {}
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_b64": base64.b64encode(data).decode()}


def _bytes(fields: dict[str, Any], name: str) -> bytes:
    if f"{name}_b64" in fields:
        return base64.b64decode(fields[f"{name}_b64"])
    return str(fields.get(name, "")).encode()


def run(command: list[str]) -> Recorded:
    """Blocks until it has ended. Our stdin is its own. Never raises OSError: what cannot be executed ends with 126 or
    127, as in a shell."""
    with _Forwarding() as forwarding:
        try:
            # A group of its own, so that a signal to ours comes once; at a terminal the keyboard's signals go to the
            # foreground group alone, so it stays in that.
            child = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=None if os.isatty(0) else 0,
                preexec_fn=_die_with_parent(os.getpid()),
            )
        except (OSError, subprocess.SubprocessError) as problem:
            code = 127 if isinstance(problem, FileNotFoundError) else 126
            words = f"{command[0]}: {problem}\n".encode(errors="replace")
            _write(2, words)
            return Recorded(code, stderr=words)
        with child:
            forwarding.to(child)
            tails = _pass_through(child, forwarding)
            code = child.wait()
    out, err = tails
    return Recorded(128 - code if code < 0 else code, bytes(out.kept), bytes(err.kept), out.cut_bytes + err.cut_bytes)


def _die_with_parent(parent: int) -> Any:
    """What kills us past catching kills it as well: otherwise it would act on with nobody to record it."""
    prctl = ctypes.CDLL(None).prctl

    def within() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)

    return within


class _Tail:
    """The end of a stream that passed."""

    def __init__(self, fd: int) -> None:
        self.fd = fd  # of ours, where it goes
        self.kept = bytearray()
        self.cut_bytes = 0

    def passed(self, data: bytes) -> None:
        _write(self.fd, data)
        self.kept += data
        over = len(self.kept) - TAIL_BYTES
        if over > TAIL_BYTES:  # not at every read
            del self.kept[:over]
            self.cut_bytes += over


def _pass_through(child: subprocess.Popen[bytes], forwarding: _Forwarding) -> tuple[_Tail, _Tail]:
    """Until it has ended and its pipes are empty, or silent."""
    assert child.stdout and child.stderr
    out, err = _Tail(1), _Tail(2)
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ, out)
        selector.register(child.stderr, selectors.EVENT_READ, err)
        selector.register(forwarding.woken, selectors.EVENT_READ, None)
        open_pipes = 2
        while open_pipes:
            ready = selector.select(None if child.poll() is None else _LINGER_S)
            if not ready and child.poll() is not None:
                break
            for key, _ in ready:
                if key.data is None:
                    os.read(forwarding.woken, 512)  # a signal, perhaps that it has ended
                elif data := os.read(key.fd, _READ_BYTES):
                    key.data.passed(data)
                else:
                    selector.unregister(key.fileobj)
                    open_pipes -= 1
    return out, err


class _Forwarding:
    """Signals to us reach the command, those too that come before it exists. A reader of `woken` learns of each."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Forwarding:
        self.woken, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._woken_before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (*_FORWARDED, signal.SIGCHLD):
            self._before[number] = signal.signal(number, self._caught)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken_before)
        os.close(self.woken)
        os.close(self._wake)

    def to(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        for number in self._early:
            self._send(number)

    def _caught(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGCHLD:
            return
        if self._child is None:
            self._early.append(number)
        else:
            self._send(number)

    def _send(self, number: int) -> None:
        assert self._child
        if self._child.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if os.isatty(0):
                if number not in (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH, signal.SIGCONT):  # it has those
                    os.kill(self._child.pid, number)
            else:
                os.killpg(self._child.pid, number)


def _write(fd: int, data: bytes) -> None:
    """All of it. Where nobody reads any more the command goes on: it is not its fault."""
    view = memoryview(data)
    with contextlib.suppress(OSError):
        while view:
            view = view[os.write(fd, view) :]
