"""Sandboxes for engine tests and demos: the real init in bare namespaces, in 50 ms and without a container engine.

A script says what goes wrong: the box that ends by itself, the verb that fails. Everything said to init and by init is
real, and boxes outlive the process that made them, as containers do: all that is known of one lies in `boxes/<id>/`.
Needs root. No isolation to speak of (`scripted_box` says what is missing): never for an agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from orchestrator.drivers import scripted_box, sockets, work_cgroup
from orchestrator.drivers.work_cgroup import ContainerCgroup
from orchestrator.errors import CarrelError, ImageMissing, Infeasible, LinkLost, SandboxConflict, Unavailable
from orchestrator.execution import Resources
from orchestrator.sandbox import (
    Absent,
    Capabilities,
    Created,
    Duplex,
    Ended,
    Fit,
    Found,
    Resized,
    Running,
    SandboxSpec,
    Status,
    Unknown,
    Usage,
)

READY_LIMIT_S: Final = 30.0
LOOK_EVERY_S: Final = 0.05
MISSING_IMAGE: Final = "missing"  # a spec with this image finds none
_BOX: Final = Path(scripted_box.__file__)


@dataclass(slots=True)
class Script:
    """What happens. `run_for_s`: each box made from now on ends by itself then, with `exit_code`, whatever runs in it;
    None = it does not. `fail_at`: errors by verb, raised one by one by its next calls (observe answers Unknown)."""

    run_for_s: float | None = None
    exit_code: int = 1
    fail_at: dict[str, list[CarrelError]] = field(default_factory=dict)


class ScriptedDriver:
    """The port `SandboxDriver`. `init`: the folder of the package sandbox_init. Several processes may share `boxes`."""

    def __init__(self, boxes: Path, slots: Path, init: Path, *, script: Script | None = None) -> None:
        self._boxes = boxes
        self._slots = slots
        self._init = init
        self.script = script or Script()
        self._starting = asyncio.Semaphore(3)
        mounts = work_cgroup.hierarchies()
        self._unified = mounts.unified / "carrel-boxes" if mounts.unified is not None else None

    # -- what is there ------------------------------------------------------------------------------------------------

    async def capabilities(self) -> Capabilities:
        self._fail("capabilities")
        return Capabilities(
            live_resize=False,
            pause=self._unified is not None,
            work_cgroup=self._unified is not None,
            cpus=float(os.cpu_count() or 1),
            notes=("scripted: real processes, no isolation, resources are not limited",),
        )

    async def observe(self, sandbox_id: str) -> Status:
        try:
            self._fail("observe")
        except CarrelError as error:
            return Unknown(error.message)
        return self._status(sandbox_id)

    def _status(self, sandbox_id: str) -> Status:
        box = self._boxes / sandbox_id
        if not (box / "spec").exists():
            return Absent()
        pid = _alive(box)
        if pid is None:
            try:
                return Ended(int((box / "exit").read_text()))
            except FileNotFoundError:
                return Ended(137, detail="killed with its keeper") if (box / "pid").exists() else Created()
        started = datetime.fromtimestamp((box / "pid").stat().st_mtime, tz=UTC)
        cgroup = self._cgroup(sandbox_id)
        return Running(started, paused=cgroup is not None and cgroup.counters().frozen)

    async def list(self) -> Sequence[Found]:
        self._fail("list")
        found: list[Found] = []
        for spec in sorted(self._boxes.glob("*/spec")):
            with contextlib.suppress(FileNotFoundError):
                made = datetime.fromtimestamp(spec.stat().st_mtime, tz=UTC)
                found.append(Found(spec.parent.name, made, _alive(spec.parent) is not None))
        return found

    async def watch(self) -> AsyncIterator[str]:
        """Ids whose state is another than at the last look."""
        seen = {found.sandbox_id: found.running for found in await self.list()}
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = {found.sandbox_id: found.running for found in await self.list()}
            for sandbox_id in seen.keys() | now.keys():
                if seen.get(sandbox_id) != now.get(sandbox_id):
                    yield sandbox_id
            seen = now

    # -- making -------------------------------------------------------------------------------------------------------

    async def ensure(self, spec: SandboxSpec, sandbox_id: str) -> None:
        self._fail("ensure")
        if os.geteuid() != 0:
            raise Infeasible("the scripted driver needs root to make namespaces", field="driver", limit="root")
        async with self._starting:
            try:
                await self._ensure(spec, sandbox_id)
            except SandboxConflict:
                raise
            except CarrelError:
                await self.remove(sandbox_id)
                raise

    async def _ensure(self, spec: SandboxSpec, sandbox_id: str) -> None:
        box = self._boxes / sandbox_id
        fixed = [spec.image, spec.runtime, str(spec.slot), spec.resources.nofile, spec.resources.tmp_bytes]
        digest = hashlib.sha256(json.dumps(fixed).encode()).hexdigest()
        await asyncio.to_thread(self._launch, spec, sandbox_id, box, digest)
        until = asyncio.get_running_loop().time() + READY_LIMIT_S
        while True:
            with contextlib.suppress(LinkLost):
                await (await sockets.dial(spec.slot / "ctl")).close()
                return
            status = self._status(sandbox_id)
            if isinstance(status, Ended | Absent):
                raise CarrelError(f"init ended before it listened: {status}")
            if asyncio.get_running_loop().time() > until:
                raise CarrelError(f"init did not listen within {READY_LIMIT_S:.0f} s")
            await asyncio.sleep(0.005)

    def _launch(self, spec: SandboxSpec, sandbox_id: str, box: Path, digest: str) -> None:
        if spec.image == MISSING_IMAGE:
            raise ImageMissing(f"image {spec.image} is not on this host", image=spec.image)
        box.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(box) as lock:
            file = box / "spec"
            if file.exists() and file.read_text() != digest:
                raise SandboxConflict(f"{sandbox_id} exists with another spec", sandbox_id=sandbox_id)
            new = box / ".spec"
            new.write_text(digest)
            new.rename(file)
            if _alive(box) is not None:
                return
            plan = {
                "sandbox_id": sandbox_id,
                "box": str(box),
                "slot": str(spec.slot),
                "python": os.path.realpath(getattr(sys, "_base_executable", sys.executable)),
                "prefix": sys.base_prefix,
                "lock": lock,
                "init": str(self._init),
                "run_for_s": self.script.run_for_s,
                "exit_code": self.script.exit_code,
            }
            for name in ("pid", "exit"):
                (box / name).unlink(missing_ok=True)
            (spec.slot / "ctl" / sockets.INIT_SOCKET).unlink(missing_ok=True)  # a dead one's
            python = str(plan["python"])
            made = subprocess.run(
                [python, "-I", "-S", "-B", str(_BOX), json.dumps(plan)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
                pass_fds=(lock,),  # kept until the box is made, whatever becomes of us
            )
            if made.returncode != 0:
                raise CarrelError(f"the box could not be made: {made.stderr.decode(errors='replace').strip()}")

    # -- speaking, changing -------------------------------------------------------------------------------------------

    async def connect(self, sandbox_id: str) -> Duplex:
        self._fail("connect")
        return await sockets.dial(self._slots / sandbox_id / "ctl")

    async def enclose(self, sandbox_id: str, spawner_pid: int) -> bool:
        self._fail("enclose")
        pid = self._pid(sandbox_id)
        if self._unified is None:
            return False
        spawner = work_cgroup.host_pid(pid, spawner_pid)
        if spawner is None:
            raise LinkLost("init's spawner is gone")
        (self._unified / sandbox_id).mkdir(parents=True, exist_ok=True)
        cgroup = ContainerCgroup(self._unified / sandbox_id, {}, pure_v2=False)
        return await asyncio.to_thread(cgroup.enclose, spawner, Resources())

    async def resize(self, sandbox_id: str, resources: Resources) -> Resized:
        """Always "applied", though nothing is limited here; what was asked for is what is measured."""
        self._fail("resize")
        if not isinstance(self._status(sandbox_id), Running):
            return Resized(Fit.DEFERRED, detail="it does not run")
        return Resized(Fit.APPLIED, resources)

    async def pause(self, sandbox_id: str) -> None:
        self._fail("pause")
        await asyncio.to_thread(self._freezable(sandbox_id).freeze)

    async def unpause(self, sandbox_id: str) -> None:
        self._fail("unpause")
        await asyncio.to_thread(self._freezable(sandbox_id).thaw)

    async def usage(self, sandbox_id: str) -> Usage | None:
        self._fail("usage")
        if _alive(self._boxes / sandbox_id) is None:
            return None
        return Usage(cpu_s=0.0, memory_bytes=0, pids=0)

    async def remove(self, sandbox_id: str) -> None:
        self._fail("remove")
        await asyncio.to_thread(self._remove, sandbox_id)

    def _remove(self, sandbox_id: str) -> None:
        box = self._boxes / sandbox_id
        try:
            with _locked(box):
                pid = _alive(box)
                if pid is not None:
                    with contextlib.suppress(ProcessLookupError):
                        _kill(box, pid)
                cgroup = self._cgroup(sandbox_id)
                if cgroup is not None:
                    cgroup.remove()
                _clear(box)
        except FileNotFoundError:  # never there, or another remover was faster
            return

    # -- asking -------------------------------------------------------------------------------------------------------

    def _fail(self, verb: str) -> None:
        errors = self.script.fail_at.get(verb)
        if errors:
            raise errors.pop(0)

    def _pid(self, sandbox_id: str) -> int:
        pid = _alive(self._boxes / sandbox_id)
        if pid is None:
            raise LinkLost("the sandbox has ended")
        return pid

    def _cgroup(self, sandbox_id: str) -> ContainerCgroup | None:
        if self._unified is None or not (self._unified / sandbox_id).is_dir():
            return None
        return ContainerCgroup(self._unified / sandbox_id, {}, pure_v2=False)

    def _freezable(self, sandbox_id: str) -> ContainerCgroup:
        self._pid(sandbox_id)
        cgroup = self._cgroup(sandbox_id)
        if cgroup is None or not cgroup.freezable:
            raise Unavailable("nothing of it was enclosed: it cannot be frozen")
        return cgroup


@contextlib.contextmanager
def _locked(box: Path) -> Iterator[int]:
    """One maker or remover at a time, of all processes; a dead one's lock is gone with it and with the program it had
    begun to make the box with. The descriptor that holds it."""
    descriptor = os.open(box, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _alive(box: Path) -> int | None:
    """Its init's pid as the host sees it, while it lives."""
    try:
        pid, started = (box / "pid").read_text().split()
        stat = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return int(pid) if stat[19] == started and stat[0] not in "ZX" else None


def _clear(box: Path) -> None:
    """Raises FileNotFoundError when somebody else has."""
    while True:
        for path in [*box.iterdir()]:
            with contextlib.suppress(FileNotFoundError):
                path.rmdir() if path.is_dir() else path.unlink()
        try:
            box.rmdir()
            return
        except OSError as error:  # the keeper has just noted the end
            if error.errno != errno.ENOTEMPTY:
                raise


def _kill(box: Path, pid: int) -> None:
    """SIGKILL init, and so its whole pid namespace; returns when it is dead."""
    descriptor = os.pidfd_open(pid)
    try:
        if _alive(box) == pid:  # still the one the descriptor is of
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            poller = select.poll()
            poller.register(descriptor, select.POLLIN)
            poller.poll(10_000)
    finally:
        os.close(descriptor)
