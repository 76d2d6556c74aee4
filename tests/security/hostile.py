"""A real `carrel serve` on one kind of store, a workspace in it that is out to harm, and what lies around that must
stay as it is. Knows no verb.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from orchestrator.client import Client
from tests.memory import growing_less
from tests.place import Place, until

SECRET = b"the neighbour's secret\n"
TERABYTE = 1 << 40
LIMIT_S = 60.0  # of silence: whoever opened a FIFO would be silent for ever


@dataclass
class Ground:
    """The server, a client that tidies nothing up, and the victims."""

    place: Place
    http: httpx.Client
    client: Client
    outside: Path

    def workspace(self, id: str) -> Path:
        """/workspace of this execution on the host."""
        record = self.place.record(id)
        data = self.place.folder / "d"
        # Not searched for: a workspace may change below whoever walks through it.
        held = data / "pool" if (data / "pool").is_mount() else data
        return held / "slots" / str(record["sandbox_id"]) / "vol" / "workspace"

    def begin(self, name: str, *command: str) -> tuple[str, Path]:
        """(id, /workspace) of a new one that runs."""
        execution = self.client.submit(command=list(command), name=name)
        until(lambda: execution.refresh().state == "RUNNING", f"{name} runs")
        workspace = self.workspace(execution.id)
        (workspace.parent.parent / "secret").write_bytes(SECRET)  # one level above what the sandbox can reach
        return execution.id, workspace

    def untouched(self, workspace: Path) -> None:
        """Nothing outside was read into anything, nor written."""
        assert {path.name: path.read_bytes() for path in self.outside.iterdir()} == {"secret": SECRET}
        beside = workspace.parent.parent / "secret"
        assert not beside.exists() or beside.read_bytes() == SECRET
        assert not [path.name for path in workspace.parent.iterdir() if path.name not in ("workspace", "state")]

    def memory(self, most_bytes: int) -> AbstractContextManager[None]:
        """The server's memory does not grow by more than this meanwhile."""
        assert self.place.server is not None
        return growing_less(self.place.server.pid, most_bytes)


@contextmanager
def serving(kind: str) -> Iterator[Ground]:
    """On a store of this kind; a pool of its own is unmounted at the end."""
    assert os.geteuid() == 0, "boxes are namespaces, a pool is mounted: this needs root"
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    settings = ("driver=scripted", "lease_s=5", f"workspace_store={kind}", "pool_size_bytes=2g")
    place = Place(folder, settings=settings, environment={"CARREL_WORKSPACE_STORE": kind})
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    try:
        place.serve()
        with (
            httpx.Client(
                base_url=place.url, headers={"authorization": f"Bearer {place.token}"}, timeout=LIMIT_S
            ) as http,
            Client(place.url, place.token) as client,
        ):
            yield Ground(place, http, client, outside)
    finally:
        place.close()
        subprocess.run(["umount", str(folder / "d" / "pool")], check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def furnish(base: Path, outside: Path, *, wide: int) -> int:
    """Everything a workspace may hold that nobody wants to meet; how many entries. As root: an agent cannot make
    devices, a store may yet be handed some."""
    (base / "plain").write_bytes(b"own\n")
    (base / "abs").symlink_to(outside / "secret")
    (base / "absdir").symlink_to(outside)
    (base / "up").symlink_to("../../secret")
    (base / "updir").symlink_to("../..")
    (base / "chain").symlink_to("absdir/secret")
    (base / "magic").symlink_to("/proc/self/root/etc/passwd")
    (base / "loop").symlink_to("loop")
    (base / "dotdot").symlink_to("..")
    (base / "hard").hardlink_to(base / "plain")
    os.mknod(base / "zero", 0o20666, os.makedev(1, 5))
    os.mknod(base / "disk", 0o60666, os.makedev(254, 0))
    os.mkfifo(base / "fifo")
    (base / "tofifo").symlink_to("fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.open(base, os.O_PATH)
        listening.bind(f"/proc/self/fd/{here}/sock")  # a socket's path is short
        os.close(here)
    (base / "suid").write_bytes(b"#!/bin/sh\n")
    (base / "suid").chmod(0o6755)
    for name in (b"new\nline", b"esc\x1b[31m\r", b"caf\xe9", b"...", b"..\\up", b"-rf", b"%2e%2e", b"a" * 255, b'"<b>'):
        Path(os.fsdecode(os.fsencode(base) + b"/" + name)).write_bytes(b"own\n")
    (base / "locked").mkdir(mode=0)
    deep = base.joinpath("deep", *["d"] * 200)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"own\n")
    (base / "huge").touch()
    os.truncate(base / "huge", TERABYTE)
    (base / "wide").mkdir()
    here = os.open(base / "wide", os.O_RDONLY)
    for number in range(wide):
        os.close(os.open(f"f{number:06}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=here))
    os.close(here)
    return len(list(os.scandir(base))) + 201 + wide


#: Run inside, as the agent: what is a file, a folder, a link out and a FIFO changes places as fast as the kernel can.
RENAMER = """
import ctypes, os, sys
outside = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
os.makedirs("spot/in")
for name in ("spot/secret", "spot/in/secret", "file", "plain"):
    open(name, "w").write("own\\n")
os.symlink(outside, "link")
os.symlink("../..", "uplink")
os.symlink(outside + "/secret", "filelink")
os.mkfifo("fifo")
here = os.open(".", os.O_PATH)
print("ready", flush=True)
pairs = ((b"spot", b"link"), (b"file", b"filelink"), (b"plain", b"fifo"), (b"spot", b"uplink"), (b"spot", b"file"))
while True:
    for one, other in pairs:
        assert libc.renameat2(here, one, here, other, 2) == 0  # RENAME_EXCHANGE: never neither
"""
