"""What the engine says of our containers, as the port's words. Asks; changes nothing, remembers nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import docker

from orchestrator.drivers import docker_options
from orchestrator.drivers.docker_options import LABEL_INSTALLATION, LABEL_SANDBOX
from orchestrator.drivers.engine_calls import EngineCalls, NoSuch
from orchestrator.drivers.work_cgroup import ContainerCgroup, Hierarchies
from orchestrator.errors import CarrelError, LinkLost, SandboxConflict
from orchestrator.execution import Resources
from orchestrator.sandbox import Absent, Created, Ended, Found, Running, Status, Unknown

Inspected = dict[str, Any]


class Containers:
    """The containers of one installation on one engine."""

    def __init__(self, calls: EngineCalls, installation: str, cgroups: Hierarchies) -> None:
        self._calls = calls
        self._installation = installation
        self._cgroups = cgroups

    async def inspect(self, sandbox_id: str) -> Inspected:
        """The engine's view of our container. Raises NoSuch, Conflict (it has the name but is not ours),
        EngineUnavailable."""
        if not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", sandbox_id):
            raise NoSuch(f"{sandbox_id!r} is no sandbox's id", text="")
        name = docker_options.container_name(sandbox_id)
        seen: Inspected = await self._calls.quick(docker.APIClient.inspect_container, name)
        labels = seen["Config"].get("Labels") or {}
        if labels.get(LABEL_INSTALLATION) != self._installation or labels.get(LABEL_SANDBOX) != sandbox_id:
            raise SandboxConflict(f"container {name} is not of this installation", sandbox_id=sandbox_id)
        return seen

    async def running(self, sandbox_id: str) -> Inspected:
        """Raises LinkLost when it does not run."""
        try:
            seen = await self.inspect(sandbox_id)
        except NoSuch as error:
            raise LinkLost("the sandbox is gone") from error
        if not seen["State"]["Running"]:
            raise LinkLost("the sandbox has ended")
        return seen

    async def observe(self, sandbox_id: str) -> Status:
        """Never raises."""
        try:
            seen = await self.inspect(sandbox_id)
            return await self._calls.run(partial(self._status, seen))
        except NoSuch:
            return Absent()
        except CarrelError as error:
            return Unknown(error.message)
        except (OSError, KeyError, ValueError) as error:  # an answer we cannot read says nothing
            return Unknown(f"{type(error).__name__}: {error}")

    def _status(self, seen: Inspected) -> Status:
        state = seen["State"]
        if state["Status"] == "created" and not state.get("Error"):
            return Created()
        if not state["Running"]:
            words = [state["Status"]] if state["Status"] != "exited" else []
            words += [state["Error"]] if state.get("Error") else []
            return Ended(exit_code=int(state["ExitCode"]), oom=bool(state["OOMKilled"]), detail=": ".join(words))
        cgroup = self.cgroup(seen)
        counters = cgroup.counters() if cgroup is not None else None
        return Running(
            started_at=_moment(state["StartedAt"]),
            paused=bool(state["Paused"]) or (counters is not None and counters.frozen),
            deaf=bool(state["Paused"]),
            oom_kills=counters.oom_kills if counters is not None else 0,
        )

    async def list(self) -> Sequence[Found]:
        """Raises EngineUnavailable."""
        label = f"{LABEL_INSTALLATION}={self._installation}"
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

    def cgroup(self, seen: Inspected) -> ContainerCgroup | None:
        """Blocking. None when it has no process, or the engine is not on this host."""
        pid = int(seen["State"]["Pid"] or 0)
        return ContainerCgroup.of(pid, self._cgroups) if pid else None


def limits_of(seen: Inspected) -> Resources:
    """As they were asked for at create, or by the last update."""
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
