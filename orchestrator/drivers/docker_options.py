"""What a sandbox may not do, as the engine's own create request. Pure: nouns in, a mapping out.

Knows neither the engine nor the files it names; `docker.py` sends this and lays out the slot. Every value was tried on
Docker 20.10 with runc 1.1 (the design's sandbox-facts page); security.md says what each is against.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from orchestrator.errors import Infeasible
from orchestrator.execution import GIB, MIB, Resources
from orchestrator.sandbox import SandboxSpec

LABEL_INSTALLATION: Final = "carrel.installation"
LABEL_SANDBOX: Final = "carrel.sandbox"
LABEL_SPEC: Final = "carrel.spec"

#: SETUID, SETGID: to become uid 1000. SETPCAP: to empty the children's bounding set. KILL: to end its children, which
#: are another uid. CHOWN and DAC_OVERRIDE are not needed: the host makes and owns what init may not.
CAPABILITIES: Final = ("SETUID", "SETGID", "SETPCAP", "KILL")

#: As the image has it, and every image built from it.
INIT: Final = ("/usr/bin/python3", "-I", "-S", "-B", "/usr/lib/carrel/sandbox_init/__main__.py")

CPU_PERIOD_US: Final = 100_000
MIN_CPUS: Final = 0.01  # the engine's own bound
MIN_MEMORY_BYTES: Final = 48 * MIB  # init, 16 MiB kept from `work`, and something to work with
MIN_PIDS: Final = 24  # init, its spawner, the 8 kept from `work`, and a shell pipeline
RUN_BYTES: Final = 16 * MIB
SHM_BYTES: Final = 64 * MIB
TMP_INODES: Final = 200_000  # ~1 KiB of kernel memory each; a pip install of a large wheel needs ~20,000

#: Above the orchestrator and its store: when the host itself runs out of memory, sandboxes go first. The engine sets
#: it as root, which also sets the floor below which uid 1000 cannot go. Below the 500 that init gives the harness.
OOM_SCORE_ADJ: Final = 250

HOSTS: Final = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
RESOLV_CONF: Final = (
    "# No resolver: this sandbox has no network. Programs reach out through the gateway's proxy only.\n"
)


@dataclass(frozen=True, slots=True)
class Agent:
    """Who the harness is: the owner of its files. As the image has it, or the uid of a worker that is not root."""

    uid: int = 1000
    gid: int = 1000

    @property
    def in_image(self) -> bool:
        return self == Agent()

    @property
    def passwd(self) -> str:
        """/etc/passwd for an agent the image does not know."""
        return (
            "root:x:0:0:root:/root:/usr/sbin/nologin\n"
            f"agent:x:{self.uid}:{self.gid}::/state/home:/bin/bash\n"
            "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        )

    @property
    def group(self) -> str:
        return f"root:x:0:\nagent:x:{self.gid}:\nnogroup:x:65534:\n"


@dataclass(frozen=True, slots=True)
class Installation:
    """What is the same for all sandboxes of one installation. `seccomp`: a profile in Docker's JSON, "" = the engine's
    default. `labels`: extra ones (tests, so that they never touch a developer's)."""

    name: str
    seccomp: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def container_name(sandbox_id: str) -> str:
    """The container's name: unique by the engine, so two creates cannot both succeed."""
    return f"carrel-{sandbox_id}"


def hostname(sandbox_id: str) -> str:
    """The last, random part of the id: says nothing about the host and fits a prompt."""
    return f"sbx-{sandbox_id[-8:].lower()}"


def spec_digest(spec: SandboxSpec) -> str:
    """What must be equal for "the same sandbox". CPU, memory and pids are left out: `resize` changes them in place, and
    a sandbox that was resized is still the one that was asked for."""
    fixed = [spec.image, spec.runtime, str(spec.slot), spec.resources.nofile, spec.resources.tmp_bytes]
    return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:32]


def check_resources(resources: Resources, *, host_cpus: float, host_memory_bytes: int) -> None:
    """Raise Infeasible(field, limit) for what this host or the engine cannot give. 0 for the host = not known.
    `disk_bytes` is the workspace store's to keep or refuse: a sandbox only binds what that has made."""
    bounds: tuple[tuple[str, float, float, float], ...] = (
        ("cpus", resources.cpus, MIN_CPUS, host_cpus),
        ("memory_bytes", resources.memory_bytes, MIN_MEMORY_BYTES, host_memory_bytes),
        ("pids", resources.pids, MIN_PIDS, 4_194_304),
        ("nofile", resources.nofile, 64, 1_048_576),
        ("tmp_bytes", resources.tmp_bytes, 1 * MIB, 1024 * GIB),
    )
    for name, value, low, high in bounds:
        if value < low:
            raise Infeasible(f"{name} is {value}, a sandbox needs at least {low}", field=name, limit=f">= {low}")
        if high and value > high:
            raise Infeasible(f"{name} is {value}, this host gives at most {high}", field=name, limit=f"<= {high}")


def limits(resources: Resources) -> dict[str, int]:
    """The part of the options that `resize` may send again. Never NanoCpus: with it a later quota is refused. Memory
    equals memory + swap, so nothing swaps."""
    return {
        "Memory": resources.memory_bytes,
        "MemorySwap": resources.memory_bytes,
        "CpuPeriod": CPU_PERIOD_US,
        "CpuQuota": max(1000, round(resources.cpus * CPU_PERIOD_US)),
        "PidsLimit": resources.pids,
    }


def laid_beside(agent: Agent) -> dict[str, tuple[str, str]]:
    """Files of the slot that are bound read-only: name → (target, content). With the network disabled the engine
    supplies neither of the first two."""
    files = {"hosts": ("/etc/hosts", HOSTS), "resolv.conf": ("/etc/resolv.conf", RESOLV_CONF)}
    if not agent.in_image:
        files |= {"passwd": ("/etc/passwd", agent.passwd), "group": ("/etc/group", agent.group)}
    return files


def create_request(
    spec: SandboxSpec, sandbox_id: str, installation: Installation, agent: Agent | None = None
) -> dict[str, Any]:
    """The body of the engine's `POST /containers/create`."""
    security = ["no-new-privileges"]
    if installation.seccomp:
        security.append(f"seccomp={installation.seccomp}")
    host: dict[str, Any] = {
        **limits(spec.resources),
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",  # /proc/self/cgroup must not tell the container's id
        "ReadonlyRootfs": True,
        "Privileged": False,
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITIES),
        "SecurityOpt": security,
        "Tmpfs": {
            "/tmp": f"rw,nosuid,nodev,exec,mode=1777,size={spec.resources.tmp_bytes},nr_inodes={TMP_INODES}",
            "/run": f"rw,nosuid,nodev,noexec,mode=755,size={RUN_BYTES}",
        },
        "ShmSize": min(SHM_BYTES, spec.resources.memory_bytes // 2),
        "Ulimits": [
            {"Name": "nofile", "Soft": spec.resources.nofile, "Hard": spec.resources.nofile},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "OomScoreAdj": OOM_SCORE_ADJ,
        "LogConfig": {"Type": "none", "Config": {}},  # output is init's business; an unread pipe would block it
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,  # how it ended must be readable
        "Init": False,
        "Mounts": [
            _bind(spec.slot / "ctl", "/run/carrel/ctl"),
            _bind(spec.slot / "spool", "/run/carrel/spool"),
            _bind(spec.slot / "vol", "/slot/vol"),
            *(
                _bind(spec.slot / name, target, read_only=True)
                for name, (target, _) in laid_beside(agent or Agent()).items()
            ),
        ],
    }
    if spec.runtime:
        host["Runtime"] = spec.runtime
    return {
        "Image": spec.image,
        "User": "0:0",  # an image may name another; init must be root to drop what it starts
        "Entrypoint": list(INIT),  # and another program, or arguments to it
        "WorkingDir": "/",
        "Env": [f"CARREL_SANDBOX_ID={sandbox_id}"],  # init's hello says it; a harness gets the env of its `start` alone
        "Hostname": hostname(sandbox_id),
        "NetworkDisabled": True,
        "AttachStdin": False,
        "AttachStdout": False,
        "AttachStderr": False,
        "OpenStdin": False,
        "Tty": False,
        "Labels": {
            **installation.labels,
            LABEL_INSTALLATION: installation.name,
            LABEL_SANDBOX: sandbox_id,
            LABEL_SPEC: spec_digest(spec),
        },
        "HostConfig": host,
    }


def _bind(source: Path, target: str, *, read_only: bool = False) -> dict[str, Any]:
    """A Mount, not a Bind: a missing source is an error, never a new empty directory of root's. `rprivate`: nothing
    mounted inside is seen outside."""
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": read_only,
        "BindOptions": {"Propagation": "rprivate"},
    }
