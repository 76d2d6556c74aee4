"""A real `carrel serve` for tests of the command line and the client: its own store, directory, port and label; boxes
of the scripted driver (the real init and real programs, without a container engine). And `carrel …` as a process of
its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT_S = 60.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Ask again until it is true; what it was."""
    end = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)
    return found


@dataclass
class Started:
    """A `carrel` that runs. What it has printed so far is in two files, so nothing blocks."""

    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def out(self) -> bytes:
        return (self.folder / "out").read_bytes()

    @property
    def err(self) -> bytes:
        return (self.folder / "err").read_bytes()

    def saw(self, text: bytes) -> None:
        """Wait until stdout holds it."""
        until(lambda: text in self.out or self.process.poll() is not None, f"{text!r} on stdout")
        assert text in self.out, (self.process.returncode, self.out, self.err)

    def press(self, number: signal.Signals = signal.SIGINT) -> None:
        self.process.send_signal(number)

    def code(self) -> int:
        return self.process.wait(LIMIT_S)


@dataclass
class Place:
    """One server, and the person who uses it."""

    folder: Path
    port: int = 0
    server: subprocess.Popen[bytes] | None = None
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    settings: tuple[str, ...] = ("driver=scripted",)
    program: tuple[str, ...] = (sys.executable, "-m", "orchestrator")
    code: Path = ROOT  # as the program sees it
    environment: Mapping[str, str] = field(default_factory=dict)  # besides this process's own
    verb: str = "serve"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CARREL_")}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(str(self.code / one) for one in (".", "sandbox-image", "agent-harness")),
            "HOME": str(self.folder / "home"),
            "XDG_CONFIG_HOME": str(self.folder / "home"),
            "XDG_STATE_HOME": str(self.folder / "home"),
            "CARREL_DATA_DIR": str(self.folder / "d"),
            "CARREL_URL": self.url,
            "CARREL_WORKSPACE_STORE": "directory",  # a pool is mounted, and would outlive a folder that is just removed
            **self.environment,
        }

    @property
    def token(self) -> str:
        return (self.folder / "d" / "admin-token").read_text().strip()

    def serve(self) -> None:
        """Start the server and wait until it is ready."""
        (self.folder / "home").mkdir(exist_ok=True)
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
            (self.folder / "name").write_text(f"t{uuid.uuid4().hex[:10]}")
        command = [*self.program, self.verb, "--port", str(self.port)]
        for one in (f"installation={(self.folder / 'name').read_text()}", "log_level=warning", *self.settings):
            command += ["--set", one]
        with (self.folder / "server.log").open("ab") as log:
            self.server = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        until(self._ready, f"the server is ready; its log: {self.folder / 'server.log'}")

    def _ready(self) -> bool:
        assert self.server is not None
        assert self.server.poll() is None, (self.folder / "server.log").read_text()
        return bool(self.carrel("ps").returncode == 0)

    def carrel(self, *arguments: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> Any:
        """Run it to its end."""
        return subprocess.run(
            [*self.program, *arguments],
            env={**self.env, **(env or {})},
            input=stdin,
            capture_output=True,
            timeout=LIMIT_S,
        )

    def ok(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run it, expect 0, and have its stdout."""
        done = self.carrel(*arguments, stdin=stdin)
        assert done.returncode == 0, (arguments, done.returncode, done.stdout, done.stderr)
        return str(done.stdout.decode())

    def start(self, *arguments: str, stdin: Any = subprocess.DEVNULL) -> Started:
        """Start it, and go on."""
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.folder))
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            process = subprocess.Popen([*self.program, *arguments], env=self.env, stdin=stdin, stdout=out, stderr=err)
        self.started.append(process)
        return Started(process, folder)

    def record(self, ref: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ok("inspect", "--json", ref))
        return found

    def events(self, ref: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ok("events", "--json", ref).splitlines()]

    def close(self) -> None:
        """End what was started: executions first, since sandboxes outlive the server."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait(LIMIT_S)
        if self.server is not None:
            if self.server.poll() is None:
                ids = self.carrel("ps", "-aq").stdout.decode().split()
                if ids:
                    self.carrel("rm", "-f", *ids)
                self.server.terminate()
                try:
                    self.server.wait(30)
                except subprocess.TimeoutExpired:
                    self.server.kill()
            self.server.wait()
        pool = self.folder / "d" / "pool"
        if pool.is_mount():
            subprocess.run(["umount", str(pool)], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)
