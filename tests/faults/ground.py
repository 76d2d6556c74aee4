"""One private installation of real processes: a store, workers, an api, boxes. Started, killed, stopped, counted.

Everything lies in one short directory; whatever is left of it at the end is killed by its pid and removed. Knows
nothing of what is broken when (nemesis) or of what must hold (judge).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.archives.histories import ArchivedHistories
from orchestrator.archives.place import archive_at
from orchestrator.drivers.docker import DockerDriver
from orchestrator.drivers.docker_options import Installation
from orchestrator.drivers.engine_calls import EngineCalls
from orchestrator.drivers.scripted import ScriptedDriver
from orchestrator.errors import EngineUnavailable
from orchestrator.stores.embedded import EmbeddedServer
from orchestrator.stores.redis import Keys, RedisExecutions, RedisHistory, Server, prepare
from orchestrator.workspaces.directory import DirectoryStore

ROOT = Path(__file__).parents[2]
LEASE_S = 2.0


@dataclass
class Process:
    """One of ours. `name` is told in logs; `argv` and `env` start it again."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    child: asyncio.subprocess.Process | None = None
    stopped: bool = False
    starts: int = 0

    async def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as log:
            self.child = await asyncio.create_subprocess_exec(
                *self.argv, cwd=ROOT, env=dict(self.env), stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.returncode is None

    def send(self, number: int) -> None:
        if self.child is not None and self.child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.child.send_signal(number)

    async def kill(self) -> None:
        self.send(signal.SIGKILL)
        if self.child is not None:
            await self.child.wait()
        self.stopped = False


@dataclass
class Ground:
    """The installation. The ports here are the test's own, on the same store and folders as the workers'."""

    folder: Path
    embedded: EmbeddedServer
    server: Server
    executions: RedisExecutions
    history: RedisHistory
    driver: ScriptedDriver
    workspaces: DirectoryStore
    port: int
    installation: str
    environment: Mapping[str, str] = field(default_factory=dict)
    workers: list[Process] = field(default_factory=list)
    apis: list[Process] = field(default_factory=list)

    def _environment(self, other: Mapping[str, str]) -> dict[str, str]:
        ours = {
            "CARREL_INSTALLATION": self.installation,
            "CARREL_DATA_DIR": str(self.folder),
            "CARREL_REDIS_URL": self.embedded.url,
            "CARREL_DRIVER": "scripted",
            "CARREL_WORKSPACE_STORE": "directory",
            "CARREL_HOST_NAME": "here",
            "CARREL_LEASE_S": f"{LEASE_S}",
            "CARREL_CONCURRENCY": "24",
            "CARREL_SWEEP_INTERVAL_S": "2",
            "CARREL_LOG_FORMAT": "json",
            "CARREL_LOG_LEVEL": "info",
            "PYTHONPATH": os.pathsep.join(str(ROOT / one) for one in (".", "sandbox-image", "agent-harness")),
        }
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {**kept, **ours, **self.environment, **other}

    async def worker(self, *, argv: Sequence[str] = ("-m", "orchestrator", "worker"), **env: str) -> Process:
        """One more worker process."""
        name = f"worker{len(self.workers) + 1}"
        log = self.folder / f"{name}.log"
        process = Process(name, (sys.executable, *argv), self._environment(env), log)
        self.workers.append(process)
        await process.start()
        return process

    async def api(self, **env: str) -> Process:
        """The api process; it listens on `port`."""
        name = f"api{len(self.apis) + 1}"
        given = self._environment({"CARREL_PORT": str(self.port), **env})
        process = Process(name, (sys.executable, "-m", "orchestrator", "api"), given, self.folder / f"{name}.log")
        self.apis.append(process)
        await process.start()
        return process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def token(self) -> str:
        """The admin token, once the api has written it."""
        path = self.folder / "admin-token"
        while not path.exists():
            await asyncio.sleep(0.05)
        return path.read_text().strip()

    def kill_store(self) -> None:
        """SIGKILL; `embedded.watch` starts it again."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.embedded.pid, signal.SIGKILL)

    def starts(self, sandbox_id: str) -> int:
        """How often a harness began in this workspace: each appends a line to /workspace/starts."""
        file = self.workspaces.slot(sandbox_id).path / "vol" / "workspace" / "starts"
        return len(file.read_bytes().splitlines()) if file.exists() else 0

    def last_logs(self, lines: int = 15) -> str:
        """The end of every process's log and all its errors, for whoever reads a failure."""
        told = []
        for process in (*self.workers, *self.apis):
            if process.log.exists():
                log = process.log.read_text(errors="replace").splitlines()
                wrong = [line for line in log[:-lines] if '"level": "error"' in line or not line.startswith("{")]
                head = f"--- {process.name} (started {process.starts} times)"
                told.append("\n".join([head, *wrong[-lines:], "…", *log[-lines:]]))
        return "\n".join(told)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def ground(**environment: str) -> AsyncIterator[Ground]:
    """The installation with its store and nothing else yet; at the end nothing of it is left. `environment`: for all
    its processes."""
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    embedded = EmbeddedServer(folder)
    await embedded.start()
    watching = asyncio.create_task(embedded.watch())
    server = Server(embedded.url, patience_s=20.0)
    installation = f"t{uuid.uuid4().hex[:10]}"
    keys = Keys(installation)
    await prepare(server, keys)
    # Where an archive is, if the test says that there is one.
    histories = ArchivedHistories(archive_at(f"file://{folder}/archive", installation))
    history = RedisHistory(server, keys, archive=histories)
    made = Ground(
        folder=folder,
        embedded=embedded,
        server=server,
        executions=RedisExecutions(server, keys),
        history=history,
        driver=ScriptedDriver(folder / "boxes", folder / "slots", ROOT / "sandbox-image" / "sandbox_init"),
        workspaces=DirectoryStore(folder / "slots"),
        port=free_port(),
        installation=installation,
        environment=environment,
    )
    try:
        yield made
    finally:
        for process in (*made.workers, *made.apis):
            await process.kill()
        for box in await made.driver.list():
            await made.driver.remove(box.sandbox_id)
        if environment.get("CARREL_DRIVER") == "docker":
            calls = EngineCalls(environment.get("CARREL_DOCKER_HOST", ""))
            containers = DockerDriver(Installation(installation), folder / "slots", calls=calls)
            with contextlib.suppress(EngineUnavailable):  # a private engine that is down is swept by its own fixture
                for found in await containers.list():
                    await containers.remove(found.sandbox_id)
            calls.close()
        await history.aclose()
        await server.aclose()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await embedded.stop()
        shutil.rmtree(folder, ignore_errors=True)
