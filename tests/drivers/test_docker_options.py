"""The create request: what must always be in it, and what may never be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.drivers.docker_options import (
    Agent,
    Installation,
    check_resources,
    create_request,
    limits,
    spec_digest,
)
from orchestrator.errors import Infeasible
from orchestrator.execution import GIB, MIB, Resources
from orchestrator.sandbox import SandboxSpec

SPEC = SandboxSpec(image="carrel/sandbox:x", resources=Resources(), slot=Path("/data/slots/sbx_01abcdefgh"))


def request(**installation: Any) -> dict[str, Any]:
    return create_request(SPEC, "sbx_01abcdefgh", Installation("inst", **installation))


def test_nothing_is_given_that_was_not_meant() -> None:
    made = request()
    host = made["HostConfig"]
    assert made["NetworkDisabled"] is True and host["NetworkMode"] == "none"
    assert host["Privileged"] is False and host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"] and sorted(host["CapAdd"]) == ["KILL", "SETGID", "SETPCAP", "SETUID"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["LogConfig"]["Type"] == "none" and host["RestartPolicy"]["Name"] == "no"
    assert host["MemorySwap"] == host["Memory"] == 1 * GIB
    for never in (
        "Binds",
        "Devices",
        "NanoCpus",
        "PortBindings",
        "PublishAllPorts",
        "PidMode",
        "UsernsMode",
        "VolumesFrom",
    ):
        assert never not in host
    assert made["Entrypoint"] == ["/usr/bin/python3", "-I", "-S", "-B", "/usr/lib/carrel/sandbox_init/__main__.py"]
    for never in ("ExposedPorts", "Volumes", "Cmd"):
        assert never not in made
    assert json.loads(json.dumps(made)) == made


def test_only_the_slot_is_bound_and_ctl_is_not_the_agents() -> None:
    mounts = request()["HostConfig"]["Mounts"]
    assert {mount["Target"]: mount["ReadOnly"] for mount in mounts} == {
        "/run/carrel/ctl": False,
        "/run/carrel/spool": False,
        "/slot/vol": False,
        "/etc/hosts": True,
        "/etc/resolv.conf": True,
    }
    for mount in mounts:
        assert mount["Type"] == "bind" and mount["BindOptions"] == {"Propagation": "rprivate"}
        assert Path(mount["Source"]).parent == SPEC.slot


def test_labels_say_whose_it_is_and_cannot_be_overridden() -> None:
    made = request(labels={"extra": "1", "carrel.installation": "forged"})
    assert made["Labels"]["carrel.installation"] == "inst"
    assert made["Labels"]["carrel.sandbox"] == "sbx_01abcdefgh"
    assert made["Labels"]["extra"] == "1"
    assert made["Hostname"] == "sbx-abcdefgh"


def test_seccomp_and_runtime_where_given() -> None:
    assert "seccomp={}" in request(seccomp="{}")["HostConfig"]["SecurityOpt"]
    assert "Runtime" not in request()["HostConfig"]
    made = create_request(replace(SPEC, runtime="runsc"), "sbx_x", Installation("inst"))
    assert made["HostConfig"]["Runtime"] == "runsc"


@pytest.mark.parametrize(
    "other",
    [
        replace(SPEC, image="other"),
        replace(SPEC, runtime="runsc"),
        replace(SPEC, slot=Path("/elsewhere")),
        replace(SPEC, resources=replace(SPEC.resources, nofile=5000)),
        replace(SPEC, resources=replace(SPEC.resources, tmp_bytes=1 * MIB)),
    ],
)
def test_another_spec_has_another_digest(other: SandboxSpec) -> None:
    assert spec_digest(other) != spec_digest(SPEC)


def test_what_resize_may_change_is_not_in_the_digest() -> None:
    resized = replace(SPEC, resources=replace(SPEC.resources, cpus=0.5, memory_bytes=2 * GIB, pids=50))
    assert spec_digest(resized) == spec_digest(SPEC)


def test_quota_and_period_as_the_kernel_wants_them() -> None:
    assert limits(replace(Resources(), cpus=0.25))["CpuQuota"] == 25_000
    assert limits(replace(Resources(), cpus=0.0101))["CpuQuota"] == 1010
    assert limits(replace(Resources(), cpus=0.01))["CpuQuota"] == 1000, "the kernel's least"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cpus", 0.001),
        ("cpus", 5.0),
        ("memory_bytes", 1 * MIB),
        ("memory_bytes", 9 * GIB),
        ("pids", 3),
        ("nofile", 3),
        ("tmp_bytes", 100),
    ],
)
def test_what_cannot_be_given_is_named(field: str, value: float) -> None:
    with pytest.raises(Infeasible) as caught:
        asked = replace(Resources(), **{field: value})  # type: ignore[arg-type]
        check_resources(asked, host_cpus=4, host_memory_bytes=8 * GIB)
    assert caught.value.data["field"] == field and caught.value.data["limit"]
    check_resources(Resources(), host_cpus=4, host_memory_bytes=8 * GIB)


def test_the_disk_is_not_the_drivers_to_refuse() -> None:
    check_resources(replace(Resources(), disk_bytes=1), host_cpus=4, host_memory_bytes=8 * GIB)


def test_an_agent_the_image_does_not_know_has_a_name() -> None:
    made = create_request(SPEC, "sbx_01abcdefgh", Installation("inst"), Agent(4711, 100))
    read_only = {mount["Target"]: mount["Source"] for mount in made["HostConfig"]["Mounts"] if mount["ReadOnly"]}
    assert read_only["/etc/passwd"] == str(SPEC.slot / "passwd") and read_only["/etc/group"] == str(SPEC.slot / "group")
    assert "agent:x:4711:100::/state/home:/bin/bash\n" in Agent(4711, 100).passwd
    assert "agent:x:100:\n" in Agent(4711, 100).group
    for field in ("User", "Labels", "Env"):
        assert made[field] == request()[field]
