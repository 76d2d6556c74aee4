"""From a spec to a container whose init listens: created once, started, waited for. And why it did not work.

Every step may have been done before, by a caller that died or whose reply was lost. Knows no limits (docker_options)
and no frames.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import docker

from orchestrator.drivers import docker_options, sockets
from orchestrator.drivers.containers import Containers, Inspected
from orchestrator.drivers.docker_options import LABEL_SPEC, Agent, Installation
from orchestrator.drivers.engine_calls import EngineCalls, NoSuch, Refused
from orchestrator.errors import CarrelError, ImageMissing, Infeasible, LinkLost, SandboxConflict
from orchestrator.sandbox import Absent, Ended, SandboxSpec

IMAGE_LABEL: Final = "carrel.image"
NO_ANSWER_AFTER_S: Final = 0.3  # then init is also dialled: its one sign of life may have gone to another caller
GONE_LIMIT_S: Final = 30.0


class ContainerStart:
    """`remove` takes away what is half gone."""

    def __init__(
        self,
        calls: EngineCalls,
        containers: Containers,
        installation: Installation,
        remove: Callable[[str], Awaitable[None]],
        ready_limit_s: float,
    ) -> None:
        self._calls = calls
        self._containers = containers
        self._installation = installation
        self._remove = remove
        self._ready_limit_s = ready_limit_s

    async def run(self, spec: SandboxSpec, sandbox_id: str) -> None:
        """Raises SandboxConflict, ImageMissing, Infeasible, EngineUnavailable, DiskFull; CarrelError with the reason of
        any other failure. What was made is left for the caller to remove."""
        await self._started(await self._created(spec, sandbox_id), spec, sandbox_id)

    async def _created(self, spec: SandboxSpec, sandbox_id: str) -> Inspected:
        """The container, made now or earlier. Raises SandboxConflict, ImageMissing, Refused, Infeasible."""
        until = asyncio.get_running_loop().time() + GONE_LIMIT_S
        while True:
            with contextlib.suppress(NoSuch):
                seen = await self._containers.inspect(sandbox_id)
                if seen["Config"]["Labels"].get(LABEL_SPEC) != docker_options.spec_digest(spec):
                    raise SandboxConflict(f"{sandbox_id} exists with another spec", sandbox_id=sandbox_id)
                if seen["State"]["Status"] not in ("removing", "dead"):
                    return seen
                await self._remove(sandbox_id)
                continue
            await self._check_image(spec.image)
            agent = await self._calls.run(partial(_lay_out, spec.slot))
            request = docker_options.create_request(spec, sandbox_id, self._installation, agent)
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
                f"image {image} is not built from ours: it has no init. Begin its Dockerfile with the line "
                "`FROM carrel/sandbox:latest` and build it again",
                field="image",
                limit="FROM carrel/sandbox:latest",
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
            status = await self._containers.observe(sandbox_id)
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


def _create(client: Any, request: dict[str, Any], name: str) -> None:
    client.create_container_from_config(request, name)


def _lay_out(slot: Path) -> Agent:
    """The files beside the workspace; whose that is."""
    agent = _agent_of(slot / "vol" / "workspace")
    for name, (_, content) in docker_options.laid_beside(agent).items():
        (slot / name).write_text(content)
        (slot / name).chmod(0o644)  # whatever the umask: for anyone inside to read
    return agent


def _agent_of(workspace: Path) -> Agent:
    """As init will find it (sandbox_init.spawner.agent)."""
    try:
        found = workspace.lstat()
    except FileNotFoundError:
        return Agent()
    return Agent(found.st_uid, found.st_gid or found.st_uid)


async def _listens(folder: Path) -> bool:
    try:
        line = await sockets.dial(folder)
    except LinkLost:
        return False
    await line.close()
    return True


def _image_missing(image: str) -> ImageMissing:
    harness = image.partition(":")[0].removeprefix("carrel/sandbox-")
    build = f"carrel image build --harness {harness}" if image.startswith("carrel/sandbox-") else "carrel image build"
    return ImageMissing(f"image {image} is not on this host: `{build}`, or `docker pull` it", image=image)


def _not_started(error: Refused, spec: SandboxSpec) -> CarrelError:
    lowered = error.text.lower()
    if "no such image" in lowered:
        return _image_missing(spec.image)
    if "cpus" in lowered or "memory limit" in lowered:
        return Infeasible(error.text, field="resources", limit="see the message")
    return CarrelError(f"the container engine could not start it: {error.text}", status=error.status)
