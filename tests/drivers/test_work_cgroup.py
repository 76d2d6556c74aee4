"""Where a container's cgroups lie and what is written to them, on made-up trees: this machine has one layout only.

The made-up files take writes as files do; what the kernel does with them is tried in tests/live.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.drivers.work_cgroup import ContainerCgroup, Hierarchies, hierarchies, host_pid, left_behind
from orchestrator.errors import Infeasible, LinkLost
from orchestrator.execution import MIB, Resources

ASKED = Resources(cpus=1.5, memory_bytes=256 * MIB, pids=100)

HYBRID = """\
25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
28 25 0:25 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
29 25 0:26 / /sys/fs/cgroup/systemd rw,relatime - cgroup systemd rw,name=systemd
30 25 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
PURE = "26 25 0:23 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def files(folder: Path, **contents: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def test_mounts_as_the_kernel_lists_them(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text(HYBRID)
    found = hierarchies(tmp_path / "mountinfo")
    root = Path("/sys/fs/cgroup")
    assert found.unified == root / "unified" and not found.pure_v2
    assert found.v1 == {
        "cpu": root / "cpu,cpuacct",
        "cpuacct": root / "cpu,cpuacct",
        "memory": root / "memory",
        "pids": root / "pids",
    }
    (tmp_path / "mountinfo").write_text(PURE)
    assert hierarchies(tmp_path / "mountinfo") == Hierarchies(root, {})
    assert hierarchies(tmp_path / "mountinfo").pure_v2


@pytest.fixture
def pure(tmp_path: Path) -> Hierarchies:
    """A pure v2 host with one container, `box`, init 4011 and its spawner 4012 in it. Folders the kernel would fill
    when they are made are there beforehand."""
    root = tmp_path / "cgroup"
    box = files(
        root / "system.slice" / "docker-box.scope",
        cgroup__procs="4011\n4012\n",
        cgroup__subtree_control="",
        memory__max=str(ASKED.memory_bytes),
        pids__max="100",
        cpu__max="150000 100000",
    )
    (box / "init").mkdir()
    os.mkfifo(box / "init" / "cgroup.procs")
    files(
        box / "work",
        cgroup__procs="",
        cgroup__freeze="",
        cgroup__events="populated 1\nfrozen 1\n",
        memory__max="",
        memory__current="1000000",
        memory__stat="anon 5\ninactive_file 400000\n",
        memory__events="low 0\noom 3\noom_kill 2\n",
        pids__max="",
        pids__current="7",
        cpu__stat="usage_usec 2500000\nuser_usec 1\n",
    )
    files(tmp_path / "proc" / "4011", cgroup="0::/system.slice/docker-box.scope\n")
    return Hierarchies(root, {})


def box_of(pure: Hierarchies, tmp_path: Path) -> tuple[ContainerCgroup, Path]:
    found = ContainerCgroup.of(4011, pure, tmp_path / "proc")
    assert found is not None and pure.unified is not None
    return found, pure.unified / "system.slice" / "docker-box.scope"


def test_pure_v2_moves_init_to_a_leaf_and_bounds_work(pure: Hierarchies, tmp_path: Path) -> None:
    cgroup, box = box_of(pure, tmp_path)
    leaf = os.open(box / "init" / "cgroup.procs", os.O_RDWR | os.O_NONBLOCK)
    try:
        assert cgroup.enclose(4012, ASKED)
        assert os.read(leaf, 99) == b"40114012", "each with a write of its own"
        assert (box / "cgroup.subtree_control").read_text() == "+memory +pids"
        assert (box / "work" / "memory.max").read_text() == str(240 * MIB)
        assert (box / "work" / "pids.max").read_text() == "92"
        assert (box / "work" / "cgroup.procs").read_text() == "4012"
        # The next worker that adopts it finds it done: init stays where it is.
        (box / "cgroup.subtree_control").write_text("memory pids\n")
        (tmp_path / "proc" / "4011" / "cgroup").write_text("0::/system.slice/docker-box.scope/init\n")
        again, _ = box_of(pure, tmp_path)
        assert again.enclose(4012, ASKED)
        with pytest.raises(BlockingIOError):
            os.read(leaf, 99)
    finally:
        os.close(leaf)


def test_pure_v2_counts_and_measures(pure: Hierarchies, tmp_path: Path) -> None:
    cgroup, _ = box_of(pure, tmp_path)
    counters = cgroup.counters()
    assert (counters.cpu_s, counters.memory_bytes, counters.pids, counters.oom_kills) == (2.5, 1_000_000, 7, 2)
    assert counters.frozen and cgroup.freezable
    assert cgroup.measured(ASKED) == ASKED


def test_pure_v2_refuses_a_bound_below_use(pure: Hierarchies, tmp_path: Path) -> None:
    """The kernel would take it and kill; what it can drop by itself (file pages) is not counted as use."""
    cgroup, box = box_of(pure, tmp_path)
    (box / "work" / "memory.current").write_text(str(200 * MIB))
    with pytest.raises(Infeasible) as caught:
        cgroup.bound(replace(ASKED, memory_bytes=128 * MIB))
    assert caught.value.data["field"] == "memory_bytes"
    assert (box / "work" / "memory.max").read_text() == "", "nothing has changed"
    (box / "work" / "memory.stat").write_text(f"inactive_file {150 * MIB}\n")
    cgroup.bound(replace(ASKED, memory_bytes=128 * MIB))
    assert (box / "work" / "memory.max").read_text() == str(112 * MIB)


def test_pure_v2_freezes_by_the_file(pure: Hierarchies, tmp_path: Path) -> None:
    cgroup, box = box_of(pure, tmp_path)
    cgroup.freeze()
    assert (box / "work" / "cgroup.freeze").read_text() == "1"
    (box / "work" / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    cgroup.thaw()
    assert (box / "work" / "cgroup.freeze").read_text() == "0"
    (box / "work" / "cgroup.freeze").unlink()
    with pytest.raises(LinkLost):
        cgroup.freeze()


def test_a_hybrid_host_bounds_in_v1_and_freezes_in_v2(tmp_path: Path) -> None:
    mounts = Hierarchies(tmp_path / "unified", {"memory": tmp_path / "memory", "pids": tmp_path / "pids"})
    files(
        tmp_path / "unified" / "docker" / "box" / "work",
        cgroup__procs="",
        cgroup__freeze="",
        cgroup__events="frozen 0\n",
    )
    files(
        tmp_path / "memory" / "docker" / "box" / "work",
        cgroup__procs="",
        memory__limit_in_bytes="",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        memory__usage_in_bytes="77",
    )
    files(tmp_path / "pids" / "docker" / "box" / "work", cgroup__procs="", pids__max="", pids__current="3")
    lines = ["4:memory:/docker/box", "8:pids:/docker/box", "1:name=systemd:/docker/box", "0::/docker/box"]
    files(tmp_path / "proc" / "11", cgroup="\n".join(lines))
    cgroup = ContainerCgroup.of(11, mounts, tmp_path / "proc")
    assert cgroup is not None and cgroup.enclose(12, ASKED)
    for controller in ("unified", "memory", "pids"):
        assert (tmp_path / controller / "docker" / "box" / "work" / "cgroup.procs").read_text() == "12"
    assert (tmp_path / "memory/docker/box/work/memory.limit_in_bytes").read_text() == str(240 * MIB)
    counters = cgroup.counters()
    assert (counters.memory_bytes, counters.pids, counters.oom_kills, counters.frozen) == (77, 3, 4, False)


@pytest.mark.parametrize("path", ["/", "/../escape", ""])
def test_the_hosts_own_cgroup_is_never_taken_for_a_containers(tmp_path: Path, path: str) -> None:
    mounts = Hierarchies(tmp_path, {"memory": tmp_path})
    files(tmp_path / "proc" / "11", cgroup=f"4:memory:{path}\n0::{path}\n")
    assert ContainerCgroup.of(11, mounts, tmp_path / "proc") is None
    assert ContainerCgroup.of(12, mounts, tmp_path / "proc") is None, "no such process"


def test_without_a_v2_tree_there_is_no_work(tmp_path: Path) -> None:
    mounts = Hierarchies(None, {"memory": tmp_path})
    files(tmp_path / "proc" / "11", cgroup="4:memory:/docker/box\n")
    cgroup = ContainerCgroup.of(11, mounts, tmp_path / "proc")
    assert cgroup is not None and not cgroup.enclose(12, ASKED) and not cgroup.freezable


def test_what_a_dead_container_left_is_found_by_its_id(tmp_path: Path) -> None:
    mounts = Hierarchies(tmp_path / "unified", {"memory": tmp_path / "memory"})
    (tmp_path / "unified" / "docker" / "box" / "work").mkdir(parents=True)
    (tmp_path / "memory" / "own-parent" / "box" / "work").mkdir(parents=True)
    found = left_behind("box", mounts)
    assert found is not None
    found.remove()
    assert not (tmp_path / "unified" / "docker" / "box").exists()
    assert not (tmp_path / "memory" / "own-parent" / "box").exists()
    assert (tmp_path / "unified" / "docker").exists(), "the parent is the engine's"
    assert left_behind("box", mounts) is None


def test_a_child_of_init_is_known_by_its_inner_pid(tmp_path: Path) -> None:
    files(tmp_path / "11" / "task" / "11", children="12 13 14 ")
    files(tmp_path / "12", status="Name:\ta\nNSpid:\t12\t7\n")
    files(tmp_path / "14", status="Name:\ta\nNSpid:\t14\t3\t2\n")  # 13 has just gone
    assert host_pid(11, 7, tmp_path) == 12
    assert host_pid(11, 2, tmp_path) == 14
    assert host_pid(11, 3, tmp_path) is None
    assert host_pid(99, 2, tmp_path) is None
