"""Sandboxes as Docker containers: the verbs of the port, one by one, on one engine.

What a container may do is said in `docker_options`, how one comes to be in `container_start`, what the engine says of
it in `containers`, what of it can be frozen in `work_cgroup`. Knows nothing of executions or frames. The engine is
asked about every question: nothing is remembered here, so that any worker at any time sees the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import docker
import requests
from docker import errors as docker_errors

from orchestrator.drivers import docker_options, sockets, work_cgroup
from orchestrator.drivers.container_start import ContainerStart
from orchestrator.drivers.containers import Containers, Inspected, limits_of
from orchestrator.drivers.docker_options import Installation
from orchestrator.drivers.engine_calls import EngineCalls, NoSuch, Refused
from orchestrator.drivers.engine_events import EngineEvents
from orchestrator.drivers.work_cgroup import ContainerCgroup
from orchestrator.errors import (
    CarrelError,
    EngineUnavailable,
    Infeasible,
    LinkLost,
    SandboxConflict,
)
from orchestrator.execution import Resources
from orchestrator.sandbox import (
    Capabilities,
    Duplex,
    Fit,
    Found,
    Resized,
    SandboxSpec,
    Status,
    Usage,
)

log = logging.getLogger(__name__)

GONE_LIMIT_S: Final = 30.0


class DockerDriver:
    """The port `SandboxDriver` on one Docker engine. `slots` holds the slot of sandbox S as `slots/S`."""

    def __init__(
        self,
        installation: Installation,
        slots: Path,
        *,
        calls: EngineCalls | None = None,
        start_concurrency: int = 3,
        ready_limit_s: float = 60.0,
    ) -> None:
        self._installation = installation
        self._slots = slots
        self._calls = calls or EngineCalls()
        self._starting = asyncio.Semaphore(start_concurrency)
        self._cgroups = work_cgroup.hierarchies()
        self._containers = Containers(self._calls, installation.name, self._cgroups)
        self._start = ContainerStart(self._calls, self._containers, installation, self.remove, ready_limit_s)
        self._host: tuple[float, int] | None = None  # cores, bytes of memory: they do not change

    def close(self) -> None:
        """End the threads and connections. Sandboxes live on."""
        self._calls.close()

    # -- what is there ------------------------------------------------------------------------------------------------

    async def capabilities(self) -> Capabilities:
        info: dict[str, Any] = await self._calls.quick(docker.APIClient.info)
        controllers = self._cgroups.pure_v2 or {"memory", "pids", "cpu"} <= self._cgroups.v1.keys()
        freezer = self._cgroups.unified is not None and os.access(self._cgroups.unified, os.W_OK)
        notes = []
        if not freezer:
            notes.append(
                "no cgroup v2 freezer for us: pause stops init too, and a snapshot while running is not possible"
            )
        if not self._installation.seccomp:
            notes.append("no seccomp profile of our own: the engine's default lets AF_VSOCK and io_uring through")
        if _remaps(info):
            notes.append("the engine remaps user ids: not supported, slots belong to the host's own uids")
        if not info.get("LiveRestoreEnabled"):
            notes.append("live-restore is off: a restart of the engine ends all sandboxes")
        return Capabilities(
            live_resize=controllers,
            pause=True,
            work_cgroup=freezer,
            runtimes=tuple(sorted(info.get("Runtimes") or ())),
            cpus=float(info["NCPU"]),
            memory_bytes=int(info["MemTotal"]),
            notes=tuple(notes),
        )

    async def observe(self, sandbox_id: str) -> Status:
        return await self._containers.observe(sandbox_id)

    async def list(self) -> Sequence[Found]:
        return await self._containers.list()

    def watch(self) -> AsyncIterator[str]:
        return EngineEvents(self._calls.stream_client, self._installation.name).ids()

    # -- making -------------------------------------------------------------------------------------------------------

    async def ensure(self, spec: SandboxSpec, sandbox_id: str) -> None:
        if spec.slot != self._slots / sandbox_id:
            raise ValueError(f"slot {spec.slot} is not {self._slots / sandbox_id}")
        cpus, memory_bytes = await self._host_size()
        docker_options.check_resources(spec.resources, host_cpus=cpus, host_memory_bytes=memory_bytes)
        async with self._starting:
            try:
                await self._start.run(spec, sandbox_id)
            except (EngineUnavailable, SandboxConflict):
                raise  # unknown, or not ours to remove
            except CarrelError:
                with contextlib.suppress(EngineUnavailable):  # the sweeper's, then; the first error says more
                    await self.remove(sandbox_id)
                raise

    # -- speaking -----------------------------------------------------------------------------------------------------

    async def connect(self, sandbox_id: str) -> Duplex:
        return await sockets.dial(self._slots / sandbox_id / "ctl")

    # -- changing -----------------------------------------------------------------------------------------------------

    async def enclose(self, sandbox_id: str, spawner_pid: int) -> bool:
        seen = await self._containers.running(sandbox_id)

        def enclose() -> bool:
            cgroup = self._containers.cgroup(seen)
            if cgroup is None:
                return False
            pid = work_cgroup.host_pid(seen["State"]["Pid"], spawner_pid)
            if pid is None:
                raise LinkLost("init's spawner is gone")
            asked = limits_of(seen)
            return cgroup.enclose(pid, cgroup.measured(asked) or asked)

        return await self._calls.run(enclose)

    async def resize(self, sandbox_id: str, resources: Resources) -> Resized:
        cpus, memory_bytes = await self._host_size()
        try:
            docker_options.check_resources(resources, host_cpus=cpus, host_memory_bytes=memory_bytes)
            seen = await self._containers.running(sandbox_id)
        except Infeasible as error:
            return Resized(Fit.INFEASIBLE, detail=error.message)
        except LinkLost:
            return Resized(Fit.DEFERRED, detail="it does not run: the next start takes them")
        cgroup = await self._calls.run(partial(self._containers.cgroup, seen))
        if cgroup is None:
            return Resized(Fit.DEFERRED, detail="its cgroup is not to be seen from here")
        before = cgroup.measured(resources) or limits_of(seen)
        try:
            await self._calls.run(partial(_check_use, cgroup, resources))
            # Down, the inner bound goes first, up, the outer: init keeps its share at every moment.
            lower = Resources(
                memory_bytes=min(before.memory_bytes, resources.memory_bytes), pids=min(before.pids, resources.pids)
            )
            await self._calls.run(partial(cgroup.bound, lower))
            await self._calls.slow(_update, seen["Id"], docker_options.limits(resources))
            await self._calls.run(partial(cgroup.bound, resources))
        except (Infeasible, Refused) as error:
            with contextlib.suppress(Infeasible, OSError):
                await self._calls.run(partial(cgroup.bound, before))
            measured = await self._calls.run(partial(cgroup.measured, resources))
            return Resized(Fit.INFEASIBLE, measured, error.message)
        except (NoSuch, FileNotFoundError):
            return Resized(Fit.DEFERRED, detail="it ended meanwhile: the next start takes them")
        return Resized(Fit.APPLIED, await self._calls.run(partial(cgroup.measured, resources)))

    async def pause(self, sandbox_id: str) -> None:
        seen = await self._containers.running(sandbox_id)
        cgroup = await self._calls.run(partial(self._containers.cgroup, seen))
        if cgroup is not None and cgroup.freezable:
            await self._calls.run(cgroup.freeze)
        elif not seen["State"]["Paused"]:
            await self._engine_pause(docker.APIClient.pause, seen, paused=True)

    async def unpause(self, sandbox_id: str) -> None:
        seen = await self._containers.running(sandbox_id)
        if seen["State"]["Paused"]:
            await self._engine_pause(docker.APIClient.unpause, seen, paused=False)
        cgroup = await self._calls.run(partial(self._containers.cgroup, seen))
        if cgroup is not None and cgroup.freezable:
            await self._calls.run(cgroup.thaw)

    async def _engine_pause(self, call: Any, seen: Inspected, *, paused: bool) -> None:
        try:
            await self._calls.slow(call, seen["Id"])
        except NoSuch:
            raise LinkLost("the sandbox ended") from None
        except (Refused, EngineUnavailable):  # 20.10 answers "already paused" with 500 where others say 409
            state = (await self._calls.quick(docker.APIClient.inspect_container, seen["Id"]))["State"]
            if bool(state["Paused"]) is not paused:
                raise

    async def usage(self, sandbox_id: str) -> Usage | None:
        try:
            seen = await self._containers.running(sandbox_id)
        except LinkLost:
            return None
        cgroup = await self._calls.run(partial(self._containers.cgroup, seen))
        if cgroup is None:
            return None
        counters = await self._calls.run(cgroup.counters)
        return Usage(cpu_s=counters.cpu_s, memory_bytes=counters.memory_bytes, pids=counters.pids)

    # -- ending -------------------------------------------------------------------------------------------------------

    async def remove(self, sandbox_id: str) -> None:
        """SIGKILL, then thaw, then remove, the cgroup last: a frozen process dies only when it may run (v1 freezer),
        and one that is thawed first could act once more."""
        try:
            seen = await self._containers.inspect(sandbox_id)
        except NoSuch:
            return
        container: str = seen["Id"]
        cgroup = await self._calls.run(partial(self._containers.cgroup, seen))
        if seen["State"]["Running"]:
            with contextlib.suppress(NoSuch, Refused):  # gone, or ended by itself
                await self._calls.slow(docker.APIClient.kill, container, "SIGKILL")
            if cgroup is not None and cgroup.freezable:
                with contextlib.suppress(LinkLost, CarrelError):
                    await self._calls.run(cgroup.thaw)
            if seen["State"]["Paused"]:
                with contextlib.suppress(CarrelError):
                    await self._calls.slow(docker.APIClient.unpause, container)
        loop = asyncio.get_running_loop()
        until = loop.time() + GONE_LIMIT_S
        while True:
            try:
                await self._calls.slow(docker.APIClient.remove_container, container, force=True, v=True)
            except NoSuch:
                break
            except Refused as error:  # another caller removes it right now
                if error.status != 409 or loop.time() > until:
                    raise EngineUnavailable(f"could not remove {sandbox_id}: {error.text}", retry_after_s=5) from error
                await asyncio.sleep(0.05)
            else:
                break
        await self._calls.run(partial(self._remove_cgroup, cgroup, container))

    def _remove_cgroup(self, cgroup: ContainerCgroup | None, container: str) -> None:
        for left in (cgroup, work_cgroup.left_behind(container, self._cgroups)):
            if left is not None:
                left.remove()

    # -- asking -------------------------------------------------------------------------------------------------------

    async def _host_size(self) -> tuple[float, int]:
        """Cores and bytes of memory. Raises Infeasible where sandboxes could not reach their slots."""
        if self._host is None:
            info: dict[str, Any] = await self._calls.quick(docker.APIClient.info)
            if _remaps(info):
                raise Infeasible(
                    "the container engine remaps user ids (userns-remap, or rootless): init could not enter its slot",
                    field="engine",
                    limit="a dockerd of root's without userns-remap",
                )
            self._host = (float(info["NCPU"]), int(info["MemTotal"]))
        return self._host


def _remaps(info: dict[str, Any]) -> bool:
    return any("name=userns" in option or "name=rootless" in option for option in info.get("SecurityOptions") or ())


def _update(client: docker.APIClient, container: str, limits: dict[str, int]) -> None:
    """The SDK's own `update_container` cannot say PidsLimit."""
    answer = client.post(
        f"{client.base_url}/v{client.api_version}/containers/{container}/update", json=limits, timeout=client.timeout
    )
    try:
        answer.raise_for_status()
    except requests.HTTPError as error:
        raise docker_errors.create_api_error_from_http_exception(error) from error


def _check_use(cgroup: ContainerCgroup, resources: Resources) -> None:
    """The kernel takes a pids limit below use and only refuses forks from then on: a surprise, so it is refused."""
    used = cgroup.counters().pids
    if used > resources.pids - work_cgroup.RESERVED_PIDS:
        raise Infeasible(
            f"{used} processes run, more than {resources.pids} allow",
            field="pids",
            limit=f">= {used + work_cgroup.RESERVED_PIDS}",
        )
