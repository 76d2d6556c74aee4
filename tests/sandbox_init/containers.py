"""A box that is a container of the real image, run as the README of sandbox-image says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
from docker.models.containers import Container

from tests.sandbox_init.boxes import Box, children

SANDBOX_IMAGE = Path(__file__).parents[2] / "sandbox-image"
LABEL = "carrel.test"
MEMORY_BYTES = 128 << 20


class ContainerBox(Box):
    def __init__(self, slot: Path, container: Container) -> None:
        self.container = container
        container.reload()
        super().__init__(slot, int(container.attrs["State"]["Pid"]))

    @property
    def state(self) -> dict[str, Any]:
        self.container.reload()
        return dict(self.container.attrs["State"])

    @property
    def spawner_pid(self) -> int:
        """As the host sees it; found as PROTOCOL.md says."""
        with self.viewer() as viewer:
            inside = str(viewer.hello.fields["spawner_pid"])
        for pid in children(self.init_pid):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == inside:
                    return pid
        raise AssertionError("no spawner among init's children")


Make = Callable[..., ContainerBox]


def create(engine: docker.DockerClient, image: str, slot: Path, **more: Any) -> Container:
    """A running container; `more` replaces options."""
    mounts = {
        str(slot / "ctl"): {"bind": "/run/carrel/ctl", "mode": "rw"},
        str(slot / "spool"): {"bind": "/run/carrel/spool", "mode": "rw"},
        str(slot / "vol"): {"bind": "/slot/vol", "mode": "rw"},
    }
    options: dict[str, Any] = {
        "detach": True,
        "labels": {LABEL: "init"},
        "environment": {"CARREL_SANDBOX_ID": "sbx_test"},
        "network_disabled": True,
        "read_only": True,
        "cap_drop": ["ALL"],
        "cap_add": ["SETUID", "SETGID", "KILL", "SETPCAP"],
        "security_opt": ["no-new-privileges", "seccomp=" + (SANDBOX_IMAGE / "seccomp.json").read_text()],
        "tmpfs": {"/tmp": "mode=1777,size=256m,exec,nosuid,nodev", "/run": "mode=755,size=16m,noexec"},
        "pids_limit": 128,
        "mem_limit": MEMORY_BYTES,
        "memswap_limit": MEMORY_BYTES,
        "log_config": docker.types.LogConfig(type="none"),
        "volumes": mounts,
    }
    container: Container = engine.containers.run(image, **{**options, **more})
    return container


def agent(box: Box, *argv: str, **fields: Any) -> tuple[int, str]:
    """Exit code and all output of a command in the box."""
    with box.viewer() as viewer:
        viewer.send("gate_open", cgroup=False)
        stdout, stderr, last = viewer.exec(*argv, **{"cwd": "/workspace", **fields})
    return int(last.fields.get("code", -int(last.fields.get("signal", 0)))), (stdout + stderr).decode()
