"""Where init is tested: as PID 1 of a namespace of its own (cheap), or of a real container (the image). And a client.

Knows the protocol's codec and the slot's layout; knows no expectation of any test.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from sandbox_init.frames import PROTOCOL_VERSION, Decoder, Frame, encode
from sandbox_init.spool import SpoolReader

SOURCE = Path(__file__).parents[2] / "sandbox-image" / "sandbox_init"
PATIENCE_S = 60.0
_CLONE_NEWNET = 0x40000000
_ENTER = """
/usr/bin/python3 -ISc 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sH14x", b"lo", 0x41))' &&
mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/carrel/ctl /run/carrel/spool &&
mount --bind "$1/ctl" /run/carrel/ctl && mount --bind "$1/spool" /run/carrel/spool &&
exec /usr/bin/env -i CARREL_SANDBOX_ID=sbx_test /usr/bin/python3 -I -S -B "$2/__main__.py"
"""


class Closed(Exception):
    """The other side closed the connection. `refused`: its last words, if it said why."""

    def __init__(self, refused: Frame | None) -> None:
        super().__init__(repr(refused))
        self.refused = refused

    @property
    def code(self) -> str:
        return str(self.refused.fields["code"]) if self.refused else ""


class Client:
    """One connection to init, blocking, with a memory of what it has received."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(PATIENCE_S)
        try:
            self._sock.connect(path)
        except OSError:
            self._sock.close()
            raise
        self._decoder = Decoder()
        self._frames: list[Frame] = []
        self.hello: Frame = Frame("none")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def send(self, verb: str, payload: bytes = b"", **fields: Any) -> None:
        try:
            self._sock.sendall(encode(Frame(verb, fields, payload)))
        except (BrokenPipeError, ConnectionResetError):
            raise Closed(None) from None

    def send_raw(self, data: bytes) -> None:
        self._sock.sendall(data)

    def greet(self, **fields: Any) -> Frame:
        with suppress(Closed):  # refused at the door: why is still to be read
            self.send("hello", protocol=PROTOCOL_VERSION, **fields)
        self.hello = self.next()
        if self.hello.verb != "hello":
            self.close()
            raise Closed(self.hello)
        return self.hello

    def next(self) -> Frame:
        """The next frame, whatever it is. Raises Closed."""
        while not self._frames:
            try:
                data = self._sock.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                raise Closed(None)
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def until(self, wanted: Callable[[Frame], bool]) -> list[Frame]:
        """Frames up to and with the first wanted one."""
        frames = []
        try:
            while True:
                frames.append(self.next())
                if wanted(frames[-1]):
                    return frames
        except Closed:
            raise Closed(frames[-1] if frames and frames[-1].verb == "refused" else None) from None

    def until_verb(self, verb: str) -> list[Frame]:
        return self.until(lambda frame: frame.verb == verb)

    def answer(self, verb: str) -> Frame:
        """The next frame of that verb; what comes before it is dropped."""
        return self.until_verb(verb)[-1]

    def exec(self, *argv: str, payload: bytes = b"", **fields: Any) -> tuple[bytes, bytes, Frame]:
        """stdout, stderr and the exit of one command."""
        self.send("exec", id="e", argv=list(argv), **{"cwd": "/tmp", **fields})
        if payload:
            for at in range(0, len(payload), 1 << 19):
                self.send("exec_stdin", payload[at : at + (1 << 19)])
        if fields.get("stdin"):
            self.send("exec_eof")
        frames = self.until(lambda frame: frame.verb in ("exec_exit", "refused"))
        return joined(frames, "stdout"), joined(frames, "stderr"), frames[-1]


def joined(frames: list[Frame], stream: str) -> bytes:
    return b"".join(frame.payload for frame in frames if frame.fields.get("stream") == stream)


def numbers(frames: list[Frame]) -> list[int]:
    return [frame.src for frame in frames if frame.src]


class Box:
    """One sandbox: its slot on the host and its init. `init_pid`: as the host sees it."""

    def __init__(self, slot: Path, init_pid: int) -> None:
        self.slot = slot
        self.init_pid = init_pid

    @property
    def socket_path(self) -> str:
        return str(self.slot / "ctl" / "init.sock")

    @property
    def spool(self) -> SpoolReader:
        return SpoolReader(self.slot / "spool")

    def connect(self) -> Client:
        return Client(self.socket_path)

    def owner(self, epoch: int = 1, after: int | None = None, gate: bool = True) -> Client:
        client = self.connect()
        client.greet(role="owner", epoch=epoch, **({} if after is None else {"after": after}))
        if gate and client.hello.fields["gate"] == "closed":
            client.send("gate_open", cgroup=False)
        return client

    def viewer(self, after: int | None = None) -> Client:
        client = self.connect()
        client.greet(role="viewer", **({} if after is None else {"after": after}))
        return client

    def run(self, script: str, epoch: int = 1, **fields: Any) -> Client:
        """An owner that has started `bash -c script`, and follows from the beginning."""
        client = self.owner(epoch, after=0)
        start(client, script, **fields)
        return client

    def dial(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """A connection to a port of the sandbox's own loopback, as a program inside would make it."""
        made: list[socket.socket] = []

        def within() -> None:  # a thread of its own: it never comes back to our network namespace
            namespace = os.open(f"/proc/{self.init_pid}/ns/net", os.O_RDONLY)
            try:
                assert ctypes.CDLL(None).setns(namespace, _CLONE_NEWNET) == 0
                made.append(socket.create_connection((host, port), timeout=PATIENCE_S))
            finally:
                os.close(namespace)

        thread = threading.Thread(target=within)
        thread.start()
        thread.join()
        return made[0]

    def kill_init(self) -> None:
        os.kill(self.init_pid, signal.SIGKILL)


def start(client: Client, script: str, **fields: Any) -> None:
    client.send("start", **{"argv": ["bash", "-c", script], "env": {}, "cwd": "/tmp", "stdin": "text", **fields})


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Ask until it is so."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"never happened: {what}")
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """Host pids of a process's children."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def make_slot() -> Path:
    slot = Path(tempfile.mkdtemp(prefix="ci-", dir="/tmp"))
    slot.chmod(0o755)
    for name in ("ctl", "spool"):
        (slot / name).mkdir(mode=0o700)
    for name in ("vol", "vol/workspace", "vol/state", "vol/state/home"):
        (slot / name).mkdir(mode=0o755)
        os.chown(slot / name, 1000, 1000)
    (slot / "vol").chmod(0o755)
    return slot


@contextmanager
def in_namespace(slot: Path, code: Path = SOURCE) -> Iterator[Box]:
    """init as PID 1 of new pid, mount and network namespaces, the last with a loopback (SIOCSIFFLAGS: up, running) and
    nothing else, as a container has it; everything in them dies with it."""
    with socket.socket(socket.AF_UNIX) as ready:
        ready.bind(str(slot / "ctl" / "ready.sock"))
        ready.listen(1)
        ready.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            ["unshare", "-pfmn", "--mount-proc", "--kill-child", "sh", "-c", _ENTER, "sh", str(slot), str(code)],
            stdin=subprocess.DEVNULL,
        )
        try:
            accepted, _ = ready.accept()
            accepted.close()
            yield Box(slot, children(process.pid)[0])
        finally:
            process.kill()
            process.wait()
            (slot / "ctl" / "ready.sock").unlink()


def remove_slot(slot: Path) -> None:
    shutil.rmtree(slot)
