"""A small internet and the egress proxy in it, for tests that ask it as a program in a sandbox would."""

from __future__ import annotations

import json
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.internet import NAMES, Internet, Running

ROOT = Path(__file__).parents[3]
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    try:
        made = Internet(folder, NAMES)
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to the end of its connection."""

    status: int
    head: str
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Proxy:
    """The proxy in the namespace `inside`, and what a program would do with it."""

    def __init__(self, running: Running, path: Path, loop: str) -> None:
        self.running = running
        self.path = path
        self.loop = loop
        self.lines: list[socket.socket] = []

    def dial(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        line.settimeout(LIMIT_S)
        self.lines.append(line)
        line.connect(str(self.path))
        return line

    def ask(self, request: str | bytes) -> Answer:
        """One request, the whole answer."""
        with self.dial() as line:
            line.sendall(request.encode("latin-1") if isinstance(request, str) else request)
            return parse(everything(line))

    def get(self, url: str, *more: str) -> Answer:
        host = url.removeprefix("http://").partition("/")[0]
        return self.ask("\r\n".join((f"GET {url} HTTP/1.1", f"Host: {host}", *more, "", "")))

    def connect(self, target: str, behind: bytes = b"") -> tuple[socket.socket, Answer]:
        """The line, and the answer to CONNECT: its head only where it is a tunnel, else all of it."""
        line = self.dial()
        line.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("latin-1") + behind)
        head = b""
        while not head.endswith(b"\r\n\r\n") and (byte := line.recv(1)):
            head += byte
        if not head.startswith(b"HTTP/1.1 200 "):
            return line, parse(head + everything(line))
        return line, parse(head)

    def tunnel(self, target: str, behind: bytes = b"") -> socket.socket:
        line, answer = self.connect(target, behind)
        assert answer.status == 200, answer
        return line

    def refused(self, target: str) -> Answer:
        line, answer = self.connect(target)
        line.close()
        assert answer.status != 200, f"{target} is let through"
        return answer

    def count(self) -> dict[str, Any]:
        return [line for line in self.running.settled() if "asked" in line][-1]

    def events(self) -> list[dict[str, Any]]:
        return self.running.having("event")


def everything(line: socket.socket) -> bytes:
    found = b""
    while data := line.recv(65536):
        found += data
    return found


def parse(data: bytes) -> Answer:
    """The final answer; interim ones before it are left out."""
    head, _, body = data.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        return parse(body)
    return Answer(int(head.split(b" ")[1]) if head.startswith(b"HTTP/") else 0, head.decode("latin-1"), body)


Opened = Callable[..., Proxy]


@pytest.fixture(params=["asyncio", "uvloop"])
def opened(request: pytest.FixtureRequest, internet: Internet, short_dir: Path) -> Iterator[Opened]:
    """Starts proxies, on either event loop: `opened("ok.test", "*.wild.test:9000", private_allow=[…])`."""
    made: list[Proxy] = []

    def open_proxy(*allow: str, private_allow: tuple[str, ...] = ("203.0.113.0/24",), idle_s: float = 600) -> Proxy:
        path = short_dir / f"gateway{len(made)}.sock"
        plan = {
            "socket": str(path),
            "allow": allow,
            "private_allow": private_allow,
            "idle_s": idle_s,
            "uvloop": request.param == "uvloop",
        }
        command = [sys.executable, "-m", "tests.gateway.egress.process", json.dumps(plan)]
        made.append(Proxy(internet.start(internet.inside, command, cwd=ROOT), path, request.param))
        return made[-1]

    yield open_proxy
    for proxy in made:
        for line in proxy.lines:
            line.close()
        proxy.running.close()


@pytest.fixture
def proxy(opened: Opened) -> Proxy:
    """Everything the DNS server knows is allowed, on the ports that are served; 203.0.113.0/24 is open."""
    return opened(
        *NAMES, *(f"{name}:{port}" for name in ("ok.test", "other.test") for port in (22, 8080, 9000, 9001, 8443, 9443))
    )
