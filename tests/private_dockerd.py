"""A Docker engine of the test's own, to be killed: never the machine's. Needs root, dockerd, iproute2 and util-linux.

It has its own data, state, socket, cgroup parent, and a network namespace (a second dockerd in the first one's would
rewrite its bridge and its firewall; `ip netns exec` would hide the cgroups from it). The namespace is held by a process
that does nothing, so that it outlives the engine. What is left at the end is found by these names and ended by pid.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import docker

from orchestrator.drivers.engine_calls import EngineCalls
from orchestrator.errors import EngineUnavailable

LIMIT_S = 90.0


class PrivateDockerd:
    """As a context manager: made on entry (not started), gone on exit, whatever state it was left in."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="crd-", dir="/tmp"))
        self.cgroup = f"crd-{uuid.uuid4().hex[:8]}"
        self._holder: subprocess.Popen[bytes] | None = None
        self._engine: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """For the SDK, or DOCKER_HOST."""
        return f"unix://{self.folder}/sock"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def __enter__(self) -> PrivateDockerd:
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        ours = Path("/proc/self/ns/net").stat().st_ino
        _wait(lambda: Path(f"/proc/{self._holder_pid}/ns/net").stat().st_ino != ours, "a network namespace")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._end_leftovers()
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
        shutil.rmtree(self.folder)

    def start(self, *, live_restore: bool) -> None:
        """Returns when it answers. Raises AssertionError with the end of its log when it does not."""
        assert self._engine is None, "it runs"
        (self.folder / "pid").unlink(missing_ok=True)  # a killed one's: the pid may be somebody else's by now
        (self.folder / "config.json").write_text("{}")
        with self.log.open("ab") as log:
            self._engine = subprocess.Popen(
                [
                    *("nsenter", f"--net=/proc/{self._holder_pid}/ns/net", "dockerd"),
                    *("--config-file", str(self.folder / "config.json")),
                    *("--data-root", str(self.folder / "data"), "--exec-root", str(self.folder / "exec")),
                    *("--pidfile", str(self.folder / "pid"), "--host", self.url),
                    *("--cgroup-parent", f"/{self.cgroup}", f"--live-restore={str(live_restore).lower()}"),
                    *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        _wait(self._answers, "the private dockerd answers", self.log)

    def kill(self) -> None:
        """SIGKILL to dockerd; its containerd dies with it, its sandboxes do not. Idempotent."""
        if self._engine is not None:
            self._engine.kill()
            self._engine.wait()
            self._engine = None
            self._bury_containerd()

    def _bury_containerd(self) -> None:
        """It dies with dockerd (a parent-death signal). Where the machine's PID 1 is slow to reap, the next dockerd
        would take the zombie for a living one and wait for it."""
        file = self.folder / "exec" / "containerd" / "containerd.pid"
        try:
            stat = Path("/proc", file.read_text().strip(), "stat")
        except FileNotFoundError:
            return
        _wait(lambda: _state(stat) in ("", "Z", "X"), "containerd is dead")
        file.unlink()

    def load(self, image: str) -> None:
        """Copy an image of the machine's engine here, unless it is here (20 s for 500 MB)."""
        client = self.client()
        try:
            if client.images(name=image):
                return
        finally:
            client.close()
        pipe = f'docker save "$1" | docker -H "{self.url}" load -q'
        subprocess.run(["bash", "-o", "pipefail", "-c", pipe, "load", image], check=True, stdout=subprocess.DEVNULL)

    def client(self) -> docker.APIClient:
        return EngineCalls(self.url, slow_s=LIMIT_S).stream_client()

    @property
    def _holder_pid(self) -> int:
        assert self._holder is not None, "used outside of its `with`"
        return self._holder.pid

    def _answers(self) -> bool:
        assert self._engine is not None
        if self._engine.poll() is not None:
            raise AssertionError(f"the private dockerd ended: {self.log.read_text()[-2000:]}")
        try:
            client = self.client()
            try:
                return bool(client.ping())
            finally:
                client.close()
        except (EngineUnavailable, docker.errors.DockerException, OSError):
            return False

    def _end_leftovers(self) -> None:
        """Sandboxes by our cgroup, containerd and its shims by our folder on their command line."""
        roots = [path for path in Path("/sys/fs/cgroup").glob(f"*/{self.cgroup}") if path.is_dir()]
        for _ in range(100):
            pids = {int(pid) for root in roots for file in root.rglob("cgroup.procs") for pid in _lines(file)}
            pids |= {int(path.name) for path in Path("/proc").glob("[0-9]*") if str(self.folder) in _command(path)}
            pids.discard(os.getpid())
            if not pids:
                break
            for file in [freeze for root in roots for freeze in root.rglob("cgroup.freeze")]:
                with contextlib.suppress(OSError):
                    file.write_text("0")
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            point = line.split()[4]
            if point.startswith(str(self.folder)):
                subprocess.run(["umount", "--lazy", point], check=False)
        for root in roots:
            for folder in sorted((path for path in [root, *root.rglob("*")] if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _state(stat: Path) -> str:
    try:
        return stat.read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _wait(condition: Callable[[], bool], what: str, log: Path | None = None) -> None:
    until = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"never happened: {what}\n{log.read_text()[-2000:] if log else ''}")
        time.sleep(0.02)
