"""The `work` cgroup of one sandbox, from the host: everything in it but init, to be frozen, bounded and counted.

It is a child of the container's own cgroup, made by us, because the engine knows only whole containers. Two layouts:

- v1 controllers with a v2 mount beside them ("hybrid"): `work` in v2 for the freezer (SIGKILL works on what it froze;
  with the v1 freezer it waits for the thaw), `work` in v1 `memory` and `pids` for the bounds.
- pure v2: one tree. A cgroup with processes of its own cannot give controllers to children, so init moves to a leaf
  `init` beside `work` first. (Written from the kernel's cgroup-v2.rst; the file logic is tested on a made-up tree.)

Knows files and process ids; nothing of Docker or of what runs inside. Blocking, but only kernel files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.errors import Infeasible, LinkLost, Unavailable
from orchestrator.execution import MIB, Resources

#: Kept from `work`, so that init lives when its children have used everything: an OOM killer or a fork limit that hits
#: the container's own bound takes init with it (seen: a full tmpfs; many small processes).
RESERVED_MEMORY_BYTES: Final = 16 * MIB
RESERVED_PIDS: Final = 8

WORK: Final = "work"
LEAF: Final = "init"
FREEZE_LIMIT_S: Final = 10.0  # 0.1-5 ms as a rule; a process in uninterruptible sleep holds it up


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """The host's cgroup mounts. `unified`: the v2 tree, None where there is none; `v1`: controller → mount point."""

    unified: Path | None
    v1: dict[str, Path]

    @property
    def pure_v2(self) -> bool:
        return self.unified is not None and "memory" not in self.v1


def hierarchies(mountinfo: Path = Path("/proc/self/mountinfo")) -> Hierarchies:
    """As proc(5) describes `mountinfo`: mount point is field 5; after " - " come type, source and super options."""
    unified: Path | None = None
    v1: dict[str, Path] = {}
    for line in mountinfo.read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4])
        kind, _source, options = after.split(maxsplit=2)
        if kind == "cgroup2" and unified is None:
            unified = point
        elif kind == "cgroup":
            for option in options.split(","):
                if option in ("memory", "pids", "cpu", "cpuacct"):
                    v1.setdefault(option, point)
    return Hierarchies(unified, v1)


@dataclass(frozen=True, slots=True)
class Counters:
    """Of `work` where there is one, else of the container."""

    cpu_s: float
    memory_bytes: int
    pids: int
    oom_kills: int
    frozen: bool


class ContainerCgroup:
    """The cgroup of one running container, found through its first process; methods raise nothing when it is gone
    unless they say so."""

    def __init__(self, unified: Path | None, v1: dict[str, Path], *, pure_v2: bool) -> None:
        self._unified = unified
        self._v1 = v1
        self._pure_v2 = pure_v2

    @classmethod
    def of(cls, init_pid: int, mounts: Hierarchies, proc: Path = Path("/proc")) -> ContainerCgroup | None:
        """Of the process `init_pid` (as the host sees it); None when there is no such process, or when it is not in a
        cgroup of its own (a child made there would bound the whole host)."""
        try:
            lines = (proc / str(init_pid) / "cgroup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return None
        unified: Path | None = None
        v1: dict[str, Path] = {}
        for line in lines:
            _number, controllers, path = line.split(":", 2)
            if path in ("/", "") or ".." in path:
                continue
            relative = path.lstrip("/")
            if not controllers:
                if mounts.unified is not None:
                    unified = mounts.unified / relative
                continue
            for name in controllers.split(","):
                if name in mounts.v1:
                    v1[name] = mounts.v1[name] / relative
        if mounts.pure_v2 and unified is not None and unified.name == LEAF:
            unified = unified.parent  # we have been here before
        if unified is None and not v1:
            return None
        return cls(unified, v1, pure_v2=mounts.pure_v2)

    # -- making -------------------------------------------------------------------------------------------------------

    @property
    def freezable(self) -> bool:
        """True when `work` exists where it can be frozen."""
        return self._unified is not None and (self._unified / WORK / "cgroup.freeze").exists()

    def enclose(self, pid: int, resources: Resources) -> bool:
        """Make `work`, bound it, move the process `pid` into it. False when this host has no v2 freezer or lets us not
        make one. Idempotent. Raises LinkLost when the process is gone."""
        if self._unified is None:
            return False
        try:
            if self._pure_v2:
                self._make_leaf()
            folders = list(self._work_folders())
            for folder in folders:
                folder.mkdir(exist_ok=True)
            self.bound(resources)
            for folder in folders:
                _write(folder / "cgroup.procs", str(pid))
        except ProcessLookupError:
            raise LinkLost("init's spawner is gone") from None
        except PermissionError:
            return False
        except FileNotFoundError:
            raise LinkLost("the container's cgroup is gone") from None
        return True

    def _make_leaf(self) -> None:
        """Pure v2: everything that runs goes to the leaf, then the controllers are handed down. Before the gate opens
        these are init and its spawner only, and neither forks, so one pass sees all."""
        assert self._unified is not None
        control = self._unified / "cgroup.subtree_control"
        if {"memory", "pids"} <= set(control.read_text().split()):
            return  # done before; a crash half-way is done again
        leaf = self._unified / LEAF
        leaf.mkdir(exist_ok=True)
        for pid in (self._unified / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                _write(leaf / "cgroup.procs", pid)
        _write(control, "+memory +pids")

    def _work_folders(self) -> Iterator[Path]:
        """Bounds before the freezer: what is in the freezer's `work` is bounded already."""
        if not self._pure_v2:
            for name in ("memory", "pids"):
                if name in self._v1:
                    yield self._v1[name] / WORK
        if self._unified is not None:
            yield self._unified / WORK

    # -- bounding -----------------------------------------------------------------------------------------------------

    def bound(self, resources: Resources) -> None:
        """Set the bounds of `work` below those given. No `work`: nothing. Raises Infeasible when more memory is in use
        than that (nothing has changed then: memory goes first)."""
        memory = str(max(resources.memory_bytes - RESERVED_MEMORY_BYTES, RESERVED_MEMORY_BYTES))
        pids = str(max(resources.pids - RESERVED_PIDS, 1))
        try:
            if self._pure_v2:
                assert self._unified is not None
                self._bound_v2(self._unified / WORK, memory, pids)
            else:
                self._bound_v1(memory, pids)
        except OSError as error:
            if error.errno in (errno.EBUSY, errno.EINVAL):
                raise Infeasible(
                    f"more memory is in use than {resources.memory_bytes} bytes allow",
                    field="memory_bytes",
                    limit=f"> {self.counters().memory_bytes + RESERVED_MEMORY_BYTES}",
                ) from error
            raise

    def _bound_v1(self, memory: str, pids: str) -> None:
        if "memory" in self._v1 and (folder := self._v1["memory"] / WORK).is_dir():
            _write(folder / "memory.limit_in_bytes", memory)
        if "pids" in self._v1 and (folder := self._v1["pids"] / WORK).is_dir():
            _write(folder / "pids.max", pids)

    def _bound_v2(self, folder: Path, memory: str, pids: str) -> None:
        if not folder.is_dir():
            return
        # v2 accepts a limit below use and kills; so ask first. What the kernel can drop by itself is not in the way.
        used = _number(folder / "memory.current") or 0
        if used - _keyed(folder / "memory.stat", "inactive_file") > int(memory):
            raise OSError(errno.EBUSY, "in use")
        _write(folder / "memory.max", memory)
        _write(folder / "pids.max", pids)

    def measured(self, wanted: Resources) -> Resources | None:
        """What the kernel says the container's limits are; what a cgroup does not hold is taken from `wanted`. None
        when it is gone."""
        try:
            if self._pure_v2:
                assert self._unified is not None
                quota, period = (self._unified / "cpu.max").read_text().split()
                memory = (self._unified / "memory.max").read_text().strip()
                pids = (self._unified / "pids.max").read_text().strip()
            else:
                quota = (self._v1["cpu"] / "cpu.cfs_quota_us").read_text().strip()
                period = (self._v1["cpu"] / "cpu.cfs_period_us").read_text().strip()
                memory = (self._v1["memory"] / "memory.limit_in_bytes").read_text().strip()
                pids = (self._v1["pids"] / "pids.max").read_text().strip()
        except (OSError, KeyError, ValueError):
            return None
        return Resources(
            cpus=0.0 if quota in ("max", "-1") else int(quota) / int(period),
            memory_bytes=0 if memory == "max" else int(memory),
            pids=0 if pids == "max" else int(pids),
            nofile=wanted.nofile,
            tmp_bytes=wanted.tmp_bytes,
            disk_bytes=wanted.disk_bytes,
        )

    # -- freezing -----------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Returns when nothing in `work` runs any more. Raises LinkLost (gone), Unavailable (something would not stop;
        all of it runs again)."""
        self._turn(True)

    def thaw(self) -> None:
        """The opposite. Raises LinkLost."""
        self._turn(False)

    def _turn(self, frozen: bool) -> None:
        assert self._unified is not None
        folder = self._unified / WORK
        try:
            _write(folder / "cgroup.freeze", "1" if frozen else "0")
            until = time.monotonic() + FREEZE_LIMIT_S
            pause_s = 0.0002
            while bool(_keyed(folder / "cgroup.events", "frozen", missing_ok=False)) is not frozen:
                if time.monotonic() > until:
                    _write(folder / "cgroup.freeze", "0")
                    raise Unavailable(f"a process did not stop within {FREEZE_LIMIT_S:.0f} s", retry_after_s=5)
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, 0.02)
        except (FileNotFoundError, ProcessLookupError):
            raise LinkLost("the sandbox ended") from None
        except OSError as error:
            if error.errno == errno.ENODEV:  # removed between open and write
                raise LinkLost("the sandbox ended") from None
            raise

    # -- counting -----------------------------------------------------------------------------------------------------

    def counters(self) -> Counters:
        """Zeroes for what cannot be read."""
        work = self._unified / WORK if self._unified is not None else None
        frozen = work is not None and bool(_keyed(work / "cgroup.events", "frozen"))
        if self._pure_v2:
            assert self._unified is not None and work is not None
            folder = work if work.is_dir() else self._unified
            return Counters(
                cpu_s=_keyed(folder / "cpu.stat", "usage_usec") / 1e6,
                memory_bytes=_number(folder / "memory.current") or 0,
                pids=_number(folder / "pids.current") or 0,
                oom_kills=_keyed(folder / "memory.events", "oom_kill"),
                frozen=frozen,
            )
        memory, pids = self._inner("memory"), self._inner("pids")
        cpu = self._v1.get("cpuacct")  # `work` has none of its own: init's share is nothing beside it
        return Counters(
            cpu_s=((_number(cpu / "cpuacct.usage") if cpu is not None else None) or 0) / 1e9,
            memory_bytes=(_number(memory / "memory.usage_in_bytes") if memory is not None else None) or 0,
            pids=(_number(pids / "pids.current") if pids is not None else None) or 0,
            oom_kills=_keyed(memory / "memory.oom_control", "oom_kill") if memory is not None else 0,
            frozen=frozen,
        )

    def _inner(self, controller: str) -> Path | None:
        folder = self._v1.get(controller)
        if folder is not None and (folder / WORK).is_dir():
            return folder / WORK
        return folder

    # -- ending -------------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """Thaw and remove what we made, after the container has gone; the engine may have been faster."""
        if self._unified is not None:
            with contextlib.suppress(OSError):
                _write(self._unified / WORK / "cgroup.freeze", "0")
        folders = list(self._work_folders())
        if self._pure_v2 and self._unified is not None:
            folders.append(self._unified / LEAF)
        for folder in [*folders, *{folder.parent for folder in folders}]:
            with contextlib.suppress(OSError):  # still in use, or gone: the sweeper comes again
                folder.rmdir()


def left_behind(container_id: str, mounts: Hierarchies) -> ContainerCgroup | None:
    """The cgroup of a container that has no process any more, by the names engines give them; None when nothing is
    left."""

    def there(mount: Path) -> Path | None:
        # cgroupfs: <parent>/<id>, the parent is `docker` unless configured; systemd: a scope in a slice.
        for pattern in (f"*/{container_id}", f"*/docker-{container_id}.scope"):
            for found in mount.glob(pattern):
                return found
        return None

    unified = there(mounts.unified) if mounts.unified is not None else None
    v1 = {name: found for name, mount in mounts.v1.items() if (found := there(mount)) is not None}
    if unified is None and not v1:
        return None
    return ContainerCgroup(unified, v1, pure_v2=mounts.pure_v2)


def host_pid(init_pid: int, inner_pid: int, proc: Path = Path("/proc")) -> int | None:
    """The host's number of a child of init that is `inner_pid` in the sandbox's own pid namespace (last of `NSpid`)."""
    try:
        children = (proc / str(init_pid) / "task" / str(init_pid) / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    for child in children:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in (proc / child / "status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[-1] == str(inner_pid):
                    return int(child)
    return None


def _write(file: Path, value: str) -> None:
    """One write(2): the kernel takes a value whole. Not Path.write_text, whose O_CREAT a cgroup answers with EACCES
    where the file is gone."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    finally:
        os.close(descriptor)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _keyed(file: Path, key: str, *, missing_ok: bool = True) -> int:
    """A value of a "flat keyed" file. 0 when the key or (with missing_ok) the file is not there."""
    try:
        for line in file.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except OSError:
        if not missing_ok:
            raise
    return 0
