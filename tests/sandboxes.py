"""Real sandboxes for tests: a driver with its own label and folders, and the steps from nothing to a running command.

Whatever a test makes through a Bench is removed at its end, by the driver's own means.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulid import ULID

from orchestrator.drivers.docker import DockerDriver
from orchestrator.drivers.docker_options import Installation
from orchestrator.drivers.engine_calls import EngineCalls
from orchestrator.drivers.scripted import Script, ScriptedDriver
from orchestrator.execution import MIB, Resources
from orchestrator.link import ExecExit, ExecOutput, OwnerLink, ViewerLink
from orchestrator.sandbox import SandboxDriver, SandboxSpec
from orchestrator.workspaces.directory import DirectoryStore

ROOT = Path(__file__).parents[1]
INIT = ROOT / "sandbox-image" / "sandbox_init"
SECCOMP = ROOT / "sandbox-image" / "seccomp.json"

#: Marks a test's containers beside our own labels, so that no cleaner mistakes them for an installation's.
TEST_LABELS = {"carrel.test": "1"}

SMALL = Resources(cpus=1.0, memory_bytes=128 * MIB, pids=64, nofile=256, tmp_bytes=16 * MIB)
LIMIT_S = 30.0


def build_image() -> str:
    """The tag of this checkout's sandbox image, built if it is not there."""
    built = subprocess.run(
        [sys.executable, str(ROOT / "sandbox-image" / "build")], check=True, stdout=subprocess.PIPE, text=True
    )
    return built.stdout.strip()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask again until it is so."""
    try:
        async with asyncio.timeout(LIMIT_S):
            while not await condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"never happened: {what}") from None


@dataclass(frozen=True)
class Ran:
    """A command's end."""

    code: int | None
    signal: int | None
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode()


class Bench:
    """A driver, a store and what they need."""

    def __init__(self, driver: SandboxDriver, folder: Path, image: str) -> None:
        self.driver = driver
        self.store = DirectoryStore(folder / "slots")
        self.folder = folder
        self.image = image
        self.made: list[str] = []

    def again(self) -> SandboxDriver:
        """The same driver as another process would have it."""
        raise NotImplementedError

    def maker(self) -> tuple[str, str, str]:
        """What another process needs to make the same driver: its kind, folder and installation."""
        raise NotImplementedError

    def init_pid(self, sandbox_id: str) -> int:
        """Of PID 1, as the host sees it."""
        raise NotImplementedError

    def trace(self, sandbox_id: str) -> str:
        """What its cgroups are named by."""
        return sandbox_id

    async def slot(self, sandbox_id: str = "", resources: Resources = SMALL) -> tuple[str, SandboxSpec]:
        """An id and the spec of a sandbox whose slot is ready."""
        sandbox_id = sandbox_id or f"sbx_{str(ULID()).lower()}"
        slot = await self.store.prepare(sandbox_id, inherit=None, seeds=[], disk_bytes=0)
        self.made.append(sandbox_id)
        return sandbox_id, SandboxSpec(image=self.image, resources=resources, slot=slot.path)

    async def sandbox(self, resources: Resources = SMALL) -> str:
        """A running one, its spawner not yet in `work`."""
        sandbox_id, spec = await self.slot(resources=resources)
        await self.driver.ensure(spec, sandbox_id)
        return sandbox_id

    async def opened(self, resources: Resources = SMALL) -> str:
        """A running one with everything but init in `work`, ready to run commands."""
        sandbox_id = await self.sandbox(resources)
        await self.open_gate(sandbox_id)
        return sandbox_id

    async def open_gate(self, sandbox_id: str) -> None:
        async with self.owner(sandbox_id) as owner:
            enclosed = await self.driver.enclose(sandbox_id, owner.hello.spawner_pid)
            await owner.open_gate(cgroup=enclosed)

    @contextlib.asynccontextmanager
    async def owner(self, sandbox_id: str, epoch: int = 1, after: int = 0) -> AsyncIterator[OwnerLink]:
        duplex = await self.driver.connect(sandbox_id)
        link = await OwnerLink.open(duplex, epoch=epoch, after=after, changed=asyncio.Event())
        try:
            yield link
        finally:
            await link.close()

    async def run(self, sandbox_id: str, *argv: str, env: Mapping[str, str] | None = None) -> Ran:
        """One command as the harness's user, to its end."""
        out: list[bytes] = []
        err: list[bytes] = []
        async with await ViewerLink.open(await self.driver.connect(sandbox_id)) as viewer:
            async for said in viewer.exec(argv, env=env):
                if isinstance(said, ExecOutput):
                    (err if said.stream == "stderr" else out).append(said.data)
                elif isinstance(said, ExecExit):
                    return Ran(said.exit_code, said.signal, b"".join(out), b"".join(err) + said.error.encode())
        raise AssertionError("the command has no end")

    async def sh(self, sandbox_id: str, script: str) -> Ran:
        return await self.run(sandbox_id, "/bin/bash", "-c", script)

    async def spawn(self, sandbox_id: str, *argv: str) -> None:
        """A command that goes on by itself."""
        async with await ViewerLink.open(await self.driver.connect(sandbox_id)) as viewer:
            async for _ in viewer.exec(argv, detach=True):
                pass

    def volume(self, sandbox_id: str) -> Path:
        return self.store.slot(sandbox_id).path / "vol"

    async def close(self) -> None:
        for sandbox_id in self.made:
            await self.driver.remove(sandbox_id)
            await self.store.remove(sandbox_id)


class ScriptedBench(Bench):
    def __init__(self, folder: Path) -> None:
        self.script = Script()
        super().__init__(self.again(folder), folder, "scripted")

    def again(self, folder: Path | None = None) -> ScriptedDriver:
        folder = folder or self.folder
        return ScriptedDriver(folder / "boxes", folder / "slots", INIT, script=self.script)

    def maker(self) -> tuple[str, str, str]:
        return "scripted", str(self.folder), ""

    def init_pid(self, sandbox_id: str) -> int:
        return int((self.folder / "boxes" / sandbox_id / "pid").read_text().split()[0])


class DockerBench(Bench):
    def __init__(
        self, folder: Path, image: str, installation: str, *, base_url: str = "", start_concurrency: int = 3
    ) -> None:
        self.installation = Installation(installation, seccomp=SECCOMP.read_text(), labels=TEST_LABELS)
        self.base_url = base_url
        self._drivers: list[DockerDriver] = []
        self._start_concurrency = start_concurrency
        super().__init__(self.again(folder), folder, image)

    def again(self, folder: Path | None = None, *, quick_s: float = 15, slow_s: float = 90) -> DockerDriver:
        driver = DockerDriver(
            self.installation,
            (folder or self.folder) / "slots",
            calls=EngineCalls(self.base_url, quick_s=quick_s, slow_s=slow_s),
            start_concurrency=self._start_concurrency,
        )
        self._drivers.append(driver)
        return driver

    def inspect(self, sandbox_id: str) -> dict[str, Any]:
        client = EngineCalls(self.base_url).stream_client()
        try:
            seen: dict[str, Any] = client.inspect_container(f"carrel-{sandbox_id}")
            return seen
        finally:
            client.close()

    def maker(self) -> tuple[str, str, str]:
        return "docker", str(self.folder), self.installation.name

    def init_pid(self, sandbox_id: str) -> int:
        return int(self.inspect(sandbox_id)["State"]["Pid"])

    def trace(self, sandbox_id: str) -> str:
        return str(self.inspect(sandbox_id)["Id"])

    async def close(self) -> None:
        await super().close()
        for driver in self._drivers:
            driver.close()
