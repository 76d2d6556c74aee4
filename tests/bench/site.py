"""A Carrel of the bench's own: one `carrel serve` on a free port with its own store and data, ended with the run.

Knows nothing of what is measured. Everything it makes carries an installation name of its own and is removed by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from orchestrator.client import AsyncClient
from orchestrator.errors import CarrelError
from orchestrator.stores import embedded
from orchestrator.workspaces.pool import Pool
from tests import ledger

READY_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Site:
    """What a bench may use: the API through our own client, the engine, the store's url, the image, where the slots and
    snapshots are. The harness `ledger` (tests/ledger.py) is declared there."""

    client: AsyncClient
    engine: Any
    redis_url: str
    image: str
    url: str
    token: str
    pid: int
    workspaces: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _ready(process: subprocess.Popen[bytes], url: str, token_file: Path) -> AsyncClient:
    until = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise SystemExit(f"carrel serve ended with {process.returncode} before it was ready")
        if token_file.exists():
            client = AsyncClient(url, token_file.read_text().strip())
            with contextlib.suppress(CarrelError, OSError):
                if (await client.ready()).ready:
                    return client
            await client.close()
        await asyncio.sleep(0.05)
    raise SystemExit(f"carrel serve was not ready after {READY_LIMIT_S:.0f} s")


def _profiled() -> list[str]:
    """`make profile` names a file: the server runs under cProfile and writes it at its end."""
    target = os.environ.get("PROFILE")
    return ["-m", "cProfile", "-o", str(Path(target).absolute())] if target else []


@contextlib.asynccontextmanager
async def site(image: str, *, quiet: bool = True, **settings: str) -> AsyncIterator[Site]:
    """Start it, wait until it is ready, end it, remove what is left of it. `settings`: others than a bench's own."""
    folder = Path(tempfile.mkdtemp(prefix="crb-", dir="/tmp"))
    installation = f"bench-{uuid.uuid4().hex[:8]}"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    engine: Any = docker.from_env(version="1.41")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CARREL_")},
        "CARREL_DATA_DIR": str(folder),
        "CARREL_INSTALLATION": installation,
        "CARREL_PORT": str(port),
        "CARREL_IMAGE": image,
        "CARREL_CONCURRENCY": "256",
        "CARREL_LOG_LEVEL": "warning",
        "CARREL_WORKSPACE_STORE": "directory",
        "CARREL_HARNESS_DIR": str(ledger.declare(folder / "harnesses")),
        **{f"CARREL_{name.upper()}": value for name, value in settings.items()},
    }
    pool = Pool(folder, installation)
    process = subprocess.Popen(
        [sys.executable, *_profiled(), "-m", "orchestrator", "serve"],
        env=environment,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL if quiet else None,
        start_new_session=True,
    )
    try:
        client = await _ready(process, url, folder / "admin-token")
        try:
            yield Site(
                client=client,
                engine=engine,
                redis_url=embedded.ensure(folder).url,
                image=image,
                url=url,
                token=(folder / "admin-token").read_text().strip(),
                pid=process.pid,
                workspaces=pool.point if pool.file.exists() else folder,
            )
        finally:
            await client.close()
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for container in engine.containers.list(all=True, filters={"label": f"carrel.installation={installation}"}):
            container.remove(force=True)
        engine.close()
        embedded.shutdown(folder)
        pool.close()
        shutil.rmtree(folder, ignore_errors=True)
