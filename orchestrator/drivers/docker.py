"""Sandboxes as Docker containers: the verbs of the port, one by one, on one engine.

What a container may do is said in `docker_options`, what of it can be frozen in `work_cgroup`, how the engine's answers
are read in `engine_calls`. Knows nothing of executions or frames. The engine is asked about every question: nothing is
remembered here, so that any worker at any time sees the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import docker
import requests
from docker import errors as docker_errors

from orchestrator.drivers import docker_options, sockets, work_cgroup
from orchestrator.drivers.docker_options import LABEL_INSTALLATION, LABEL_SANDBOX, LABEL_SPEC, Installation
from orchestrator.drivers.engine_calls import API_VERSION, EngineCalls, NoSuch, Refused
from orchestrator.drivers.engine_events import EngineEvents
from orchestrator.drivers.work_cgroup import ContainerCgroup
from orchestrator.errors import (
    CarrelError,
    EngineUnavailable,
    ImageMissing,
    Infeasible,
    LinkLost,
    SandboxConflict,
)
from orchestrator.execution import Resources
from orchestrator.sandbox import (
    Absent,
    Capabilities,
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

log = logging.getLogger(__name__)

Inspected = dict[str, Any]

IMAGE_LABEL: Final = "carrel.image"
NO_ANSWER_AFTER_S: Final = 0.3  # then init is also dialled: its one sign of life may have gone to another caller
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
        self._ready_limit_s = ready_limit_s
        self._cgroups = work_cgroup.hierarchies()
        self._host: tuple[float, int] | None = None  # cores, bytes of memory: they do not change

    def close(self) -> None:
        """End the threads and connections. Sandboxes live on."""
        self._calls.close()

    # -- what is there ------------------------------------------------------------------------------------------------

    async def capabilities(self) -> Capabilities:
        info: dict[str, Any] = await self._calls.quick(docker.APIClient.info)
        controllers = self._cgroups.pure_v2 or {"memory", "pids", "cpu"} <= self._cgroups.v1.keys()
        freezer = self._cgroups.unified is not None
        notes = []
        if not freezer:
            notes.append("no cgroup v2 freezer: pause stops init too, and a snapshot while running is not possible")
        if not self._installation.seccomp:
            notes.append("no seccomp profile of our own: the engine's default lets AF_VSOCK and io_uring through")
        if not any("userns" in option for option in info.get("SecurityOptions") or ()):
            notes.append("the engine does not remap user ids: root in a sandbox is root's id on the host")
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
        try:
            seen = await self._inspect(sandbox_id)
            return await self._calls.run(partial(self._status, seen))
        except NoSuch:
            return Absent()
        except CarrelError as error:
            return Unknown(error.message)
        except (OSError, KeyError, ValueError) as error:  # an answer we cannot read says nothing
            return Unknown(f"{type(error).__name__}: {error}")

    def _status(self, seen: Inspected) -> Status:
        state = seen["State"]
        if not state["Running"]:
            words = [state["Status"]] if state["Status"] != "exited" else []
            words += [state["Error"]] if state.get("Error") else []
            return Ended(exit_code=int(state["ExitCode"]), oom=bool(state["OOMKilled"]), detail=": ".join(words))
        cgroup = self._cgroup(seen)
        counters = cgroup.counters() if cgroup is not None else None
        return Running(
            started_at=_moment(state["StartedAt"]),
            paused=bool(state["Paused"]) or (counters is not None and counters.frozen),
            oom_kills=counters.oom_kills if counters is not None else 0,
        )

    async def list(self) -> Sequence[Found]:
        label = f"{LABEL_INSTALLATION}={self._installation.name}"
        rows: Sequence[dict[str, Any]] = await self._calls.quick(
            docker.APIClient.containers, all=True, filters={"label": [label, LABEL_SANDBOX]}
        )
        return [
            Found(
                sandbox_id=row["Labels"][LABEL_SANDBOX],
                created_at=datetime.fromtimestamp(row["Created"], tz=UTC),
                running=row["State"] in ("running", "paused", "restarting"),
            )
            for row in rows
            # A label can be worn by anyone; the name can only be had by one.
            if row["Names"] == ["/" + docker_options.container_name(row["Labels"][LABEL_SANDBOX])]
        ]

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
                seen = await self._created(spec, sandbox_id)
                await self._started(seen, spec, sandbox_id)
            except (EngineUnavailable, SandboxConflict):
                raise  # unknown, or not ours to remove
            except CarrelError:
                with contextlib.suppress(EngineUnavailable):  # the sweeper's, then; the first error says more
                    await self.remove(sandbox_id)
                raise

    async def _created(self, spec: SandboxSpec, sandbox_id: str) -> Inspected:
        """The container, made now or earlier. Raises SandboxConflict, ImageMissing, Refused, Infeasible."""
        until = asyncio.get_running_loop().time() + GONE_LIMIT_S
        while True:
            with contextlib.suppress(NoSuch):
                seen = await self._inspect(sandbox_id)
                if seen["Config"]["Labels"].get(LABEL_SPEC) != docker_options.spec_digest(spec):
                    raise SandboxConflict(f"{sandbox_id} exists with another spec", sandbox_id=sandbox_id)
                return seen
            await self._check_image(spec.image)
            await self._calls.run(partial(_lay_out, spec.slot))
            request = docker_options.create_request(spec, sandbox_id, self._installation)
            try:
                await self._calls.slow(_create, request, docker_options.container_name(sandbox_id))
            except NoSuch as error:
                raise _image_missing(spec.image) from error
            except Refused as error:
                # 409: the name is taken. By another caller's create, which the next round finds; or by a container
                # that is being removed, which is waited for.
                if error.status != 409 or asyncio.get_running_loop().time() > until:
                    raise _not_started(error, spec) from error
                await asyncio.sleep(0.05)

    async def _check_image(self, image: str) -> None:
        try:
            found: dict[str, Any] = await self._calls.quick(docker.APIClient.inspect_image, image)
        except NoSuch as error:
            raise _image_missing(image) from error
        if IMAGE_LABEL not in ((found.get("Config") or {}).get("Labels") or {}):
            raise Infeasible(
                f"image {image} is not built from ours: it has no init; begin its Dockerfile with ours",
                field="image",
                limit="FROM carrel/sandbox",
            )

    async def _started(self, seen: Inspected, spec: SandboxSpec, sandbox_id: str) -> None:
        """It runs and init listens. Raises CarrelError with the reason when it does not."""
        folder = spec.slot / "ctl"
        with sockets.listening(folder) as sign:
            if not seen["State"]["Running"]:
                try:
                    await self._calls.slow(docker.APIClient.start, seen["Id"])
                except NoSuch as error:
                    raise CarrelError(f"{sandbox_id} was removed while it started") from error
                except Refused as error:
                    raise _not_started(error, spec) from error
            elif await _listens(folder):
                return
            loop = asyncio.get_running_loop()
            accept = loop.create_task(loop.sock_accept(sign))
            try:
                await self._ready(accept, folder, sandbox_id)
            finally:
                accept.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    (await accept)[0].close()

    async def _ready(self, accept: asyncio.Task[Any], folder: Path, sandbox_id: str) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._ready_limit_s
        while True:
            done, _ = await asyncio.wait({accept}, timeout=NO_ANSWER_AFTER_S)
            if done or await _listens(folder):
                return
            status = await self.observe(sandbox_id)
            if isinstance(status, Ended):
                raise CarrelError(
                    f"init ended with exit code {status.exit_code} before it listened"
                    + (f": {status.detail}" if status.detail else "")
                    + (" (out of memory)" if status.oom else ""),
                    exit_code=status.exit_code,
                    oom=status.oom,
                )
            if isinstance(status, Absent):
                raise CarrelError(f"{sandbox_id} was removed while it started")
            if loop.time() > until:
                raise CarrelError(f"init did not listen within {self._ready_limit_s:.0f} s")

    # -- speaking -----------------------------------------------------------------------------------------------------

    async def connect(self, sandbox_id: str) -> Duplex:
        return await sockets.dial(self._slots / sandbox_id / "ctl")

    # -- changing -----------------------------------------------------------------------------------------------------

    async def enclose(self, sandbox_id: str, spawner_pid: int) -> bool:
        seen = await self._running(sandbox_id)

        def enclose() -> bool:
            cgroup = self._cgroup(seen)
            if cgroup is None:
                return False
            pid = work_cgroup.host_pid(seen["State"]["Pid"], spawner_pid)
            if pid is None:
                raise LinkLost("init's spawner is gone")
            asked = _limits_of(seen)
            return cgroup.enclose(pid, cgroup.measured(asked) or asked)

        return await self._calls.run(enclose)

    async def resize(self, sandbox_id: str, resources: Resources) -> Resized:
        cpus, memory_bytes = await self._host_size()
        try:
            docker_options.check_resources(resources, host_cpus=cpus, host_memory_bytes=memory_bytes)
            seen = await self._running(sandbox_id)
        except Infeasible as error:
            return Resized(Fit.INFEASIBLE, detail=error.message)
        except LinkLost:
            return Resized(Fit.DEFERRED, detail="it does not run: the next start takes them")
        cgroup = await self._calls.run(partial(self._cgroup, seen))
        if cgroup is None:
            return Resized(Fit.DEFERRED, detail="its cgroup is not to be seen from here")
        before = cgroup.measured(resources) or _limits_of(seen)
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
        seen = await self._running(sandbox_id)
        cgroup = await self._calls.run(partial(self._cgroup, seen))
        if cgroup is not None and cgroup.freezable:
            await self._calls.run(cgroup.freeze)
        elif not seen["State"]["Paused"]:
            await self._engine_pause(docker.APIClient.pause, seen, paused=True)

    async def unpause(self, sandbox_id: str) -> None:
        seen = await self._running(sandbox_id)
        if seen["State"]["Paused"]:
            await self._engine_pause(docker.APIClient.unpause, seen, paused=False)
        cgroup = await self._calls.run(partial(self._cgroup, seen))
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
            seen = await self._running(sandbox_id)
        except LinkLost:
            return None
        cgroup = await self._calls.run(partial(self._cgroup, seen))
        if cgroup is None:
            return None
        counters = await self._calls.run(cgroup.counters)
        return Usage(cpu_s=counters.cpu_s, memory_bytes=counters.memory_bytes, pids=counters.pids)

    # -- ending -------------------------------------------------------------------------------------------------------

    async def remove(self, sandbox_id: str) -> None:
        """SIGKILL, then thaw, then remove, the cgroup last: a frozen process dies only when it may run (v1 freezer),
        and one that is thawed first could act once more."""
        try:
            seen = await self._inspect(sandbox_id)
        except NoSuch:
            return
        container: str = seen["Id"]
        cgroup = await self._calls.run(partial(self._cgroup, seen))
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

    async def _inspect(self, sandbox_id: str) -> Inspected:
        """The engine's view of our container. Raises NoSuch, Conflict (it has the name but is not ours),
        EngineUnavailable."""
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", sandbox_id):
            raise NoSuch(f"{sandbox_id!r} is no sandbox's id", text="")
        name = docker_options.container_name(sandbox_id)
        seen: Inspected = await self._calls.quick(docker.APIClient.inspect_container, name)
        labels = seen["Config"].get("Labels") or {}
        if labels.get(LABEL_INSTALLATION) != self._installation.name or labels.get(LABEL_SANDBOX) != sandbox_id:
            raise SandboxConflict(f"container {name} is not of this installation", sandbox_id=sandbox_id)
        return seen

    async def _running(self, sandbox_id: str) -> Inspected:
        """Raises LinkLost when it does not run."""
        try:
            seen = await self._inspect(sandbox_id)
        except NoSuch as error:
            raise LinkLost("the sandbox is gone") from error
        if not seen["State"]["Running"]:
            raise LinkLost("the sandbox has ended")
        return seen

    async def _host_size(self) -> tuple[float, int]:
        if self._host is None:
            capabilities = await self.capabilities()
            self._host = (capabilities.cpus, capabilities.memory_bytes)
        return self._host

    def _cgroup(self, seen: Inspected) -> ContainerCgroup | None:
        """Blocking. None when it has no process, or the engine is not on this host."""
        pid = int(seen["State"]["Pid"] or 0)
        return ContainerCgroup.of(pid, self._cgroups) if pid else None


def _create(client: Any, request: dict[str, Any], name: str) -> None:
    client.create_container_from_config(request, name)


def _update(client: docker.APIClient, container: str, limits: dict[str, int]) -> None:
    """The SDK's own `update_container` cannot say PidsLimit."""
    answer = client.post(
        f"{client.base_url}/v{API_VERSION}/containers/{container}/update", json=limits, timeout=client.timeout
    )
    try:
        answer.raise_for_status()
    except requests.HTTPError as error:
        raise docker_errors.create_api_error_from_http_exception(error) from error


def _lay_out(slot: Path) -> None:
    (slot / "hosts").write_text(docker_options.HOSTS)
    (slot / "resolv.conf").write_text(docker_options.RESOLV_CONF)


async def _listens(folder: Path) -> bool:
    try:
        line = await sockets.dial(folder)
    except LinkLost:
        return False
    await line.close()
    return True


def _check_use(cgroup: ContainerCgroup, resources: Resources) -> None:
    """The kernel takes a pids limit below use and only refuses forks from then on: a surprise, so it is refused."""
    used = cgroup.counters().pids
    if used > resources.pids - work_cgroup.RESERVED_PIDS:
        raise Infeasible(
            f"{used} processes run, more than {resources.pids} allow",
            field="pids",
            limit=f">= {used + work_cgroup.RESERVED_PIDS}",
        )


def _limits_of(seen: Inspected) -> Resources:
    host = seen["HostConfig"]
    return Resources(
        cpus=host["CpuQuota"] / (host["CpuPeriod"] or docker_options.CPU_PERIOD_US),
        memory_bytes=host["Memory"],
        pids=host["PidsLimit"] or 0,
    )


def _moment(text: str) -> datetime | None:
    """The engine writes nanoseconds, Python reads microseconds. Its zero time is "never"."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,6})?\d*(Z|[+-]\d\d:\d\d)", text)
    if match is None or match[1].startswith("0001-"):
        return None
    return datetime.fromisoformat(match[1] + (match[2] or "") + match[3].replace("Z", "+00:00"))


def _image_missing(image: str) -> ImageMissing:
    return ImageMissing(f"image {image} is not on this host: `carrel image build`, or `docker pull` it", image=image)


def _not_started(error: Refused, spec: SandboxSpec) -> CarrelError:
    lowered = error.text.lower()
    if "no such image" in lowered:
        return _image_missing(spec.image)
    if "cpus" in lowered or "memory limit" in lowered:
        return Infeasible(error.text, field="resources", limit="see the message")
    return CarrelError(f"the container engine could not start it: {error.text}", status=error.status)
