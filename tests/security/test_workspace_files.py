"""Attacks 43 to 46 of the design's security page: getting at other files by way of a workspace's own.

At the port, where every route ends; 47 to 51 (archives, snapshots) come with what they attack. 45 proves first that its
race is won against a reader that checks and then opens.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.errors import BadInput, CarrelError, Conflict, NotFound
from orchestrator.workspaces.directory import DirectoryStore
from orchestrator.workspaces.openat2 import SUPPORTED, walk_inside
from orchestrator.workspaces.paths import VolumeFiles

SECRET = b"the neighbour's\n"


@pytest.fixture
async def vol(short_dir: Path) -> Path:
    slot = await DirectoryStore(short_dir / "slots").prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    (short_dir / "secret").write_bytes(SECRET)
    (slot.path / "spool" / "secret").write_bytes(SECRET)
    return slot.path / "vol"


def test_the_kernel_resolves_for_us() -> None:
    """Not a fallback quietly taken: the rest of this file would then test something else than what runs."""
    assert SUPPORTED


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "../../spool/secret",
        "a/../../../secret",
        "/workspace/../../spool/secret",
        "/workspacex/y",
        "/state/../../spool/secret",
        "/proc/self/root/etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "x\0y",
        "x/\0",
        "..",
        "/",
        "./.././x",
    ],
)
def test_43_names_that_leave_are_refused(vol: Path, path: str) -> None:
    files = VolumeFiles(vol)
    for use in (files.stat, files.open, files.list, lambda name: files.write(name, [b"x"])):
        with pytest.raises(BadInput) as caught:
            use(path)
        assert caught.value.field == "path" and caught.value.data["limit"] and caught.value.data["remedy"]


@pytest.mark.parametrize("path", ["%2e%2e%2fsecret", "..%252fsecret", "..\\secret", "\u2024\u2024/secret", "․․/secret"])
def test_43_encoded_names_are_just_odd_names(vol: Path, path: str) -> None:
    files = VolumeFiles(vol)
    with pytest.raises(NotFound):
        files.open(path)
    files.write(path, [b"mine"])
    assert not any(file.read_bytes() == b"mine" for file in vol.parent.parent.iterdir() if file.is_file())


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd",
        "../../spool/secret",
        "../../../../../../../../etc/passwd",
        "/proc/self/root/etc/passwd",
        "/proc/self/fd/0",
        "/proc/self/environ",
        "/dev/zero",
        "/slot/vol/../spool/secret",
    ],
)
def test_44_links_lead_nowhere_else(vol: Path, target: str) -> None:
    base = vol / "workspace"
    (base / "link").symlink_to(target)
    (base / "folder").symlink_to(os.path.dirname(target))  # noqa: PTH120 (Path would tidy the name)
    files = VolumeFiles(vol)
    last = target.rpartition("/")[2]
    for path in ("link", f"folder/{last}"):
        with pytest.raises((NotFound, BadInput, Conflict)):
            files.open(path)
    with pytest.raises((NotFound, BadInput, Conflict)):
        files.write("folder/new/x", [b"x"])
    assert files.stat("link").target == target, "shown as what it is"
    assert [found.path for found in files.list("", recursive=True)] == ["artifacts", "folder", "link"]
    files.write("link", [b"mine"])
    assert files.stat("link").kind == "file"
    for outside in (vol.parent / "spool" / "secret", vol.parent.parent.parent / "secret"):
        assert outside.read_bytes() == SECRET


FLIPPER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
folder = os.open(sys.argv[1], os.O_PATH)
flips = 0
print("ready", flush=True)
while not os.path.exists(sys.argv[2]):
    for _ in range(50):
        assert libc.renameat2(folder, b"spot", folder, b"other", 2) == 0  # RENAME_EXCHANGE: never neither
        flips += 1
print(flips)
"""


@contextmanager
def flipping(base: Path, stop: Path) -> Iterator[Callable[[], int]]:
    """`base/spot` and `base/other` change places as fast as the kernel can. Call the answer to stop; it counts."""
    process = subprocess.Popen([sys.executable, "-c", FLIPPER, str(base), str(stop)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"

        def end() -> int:
            stop.touch()
            assert process.stdout is not None
            return int(process.stdout.read())

        yield end
    finally:
        stop.touch()
        process.stdout.close()
        process.wait()


def race(vol: Path, read: Callable[[], bytes]) -> tuple[int, int, int]:
    """Reads of workspace/spot/secret while `spot` flips between a folder and a link out: (flips, reads, leaks)."""
    base = vol / "workspace"
    (base / "spot").mkdir()
    (base / "spot" / "secret").write_bytes(b"own\n")
    (base / "other").symlink_to("../../spool")
    reads = leaks = 0
    with flipping(base, vol.parent / "stop") as end:
        until = time.monotonic() + 3
        while time.monotonic() < until and (reads < 3000 or not leaks):
            try:
                leaks += read() == SECRET
                reads += 1
            except (CarrelError, OSError):
                continue
        flips = end()
    return flips, reads, leaks


def careful(vol: Path) -> bytes:
    """What many servers do: look, then open."""
    path = vol / "workspace" / "spot" / "secret"
    if not path.resolve().is_relative_to(vol):
        raise PermissionError
    return path.read_bytes()


def test_45_the_race_is_real(vol: Path) -> None:
    flips, _, leaks = race(vol, lambda: careful(vol))
    assert flips >= 500 and leaks > 0


def test_45_check_and_use_are_one(vol: Path) -> None:
    files = VolumeFiles(vol)

    def read() -> bytes:
        opened = files.open("spot/secret")
        try:
            return opened.read(0, 99)
        finally:
            opened.close()

    flips, reads, leaks = race(vol, read)
    assert flips >= 500 and reads >= 500 and leaks == 0


def test_45_nor_by_the_walk_of_old_kernels(vol: Path) -> None:
    root = os.open(vol, os.O_PATH | os.O_DIRECTORY)

    def read() -> bytes:
        opened = walk_inside(root, b"workspace/spot/secret", os.O_RDONLY)
        try:
            return os.read(opened, 99)
        finally:
            os.close(opened)

    try:
        flips, reads, leaks = race(vol, read)
    finally:
        os.close(root)
    assert flips >= 500 and reads >= 500 and leaks == 0


def test_45_writes_and_lists_do_not_leave_either(vol: Path) -> None:
    files = VolumeFiles(vol)

    def write() -> bytes:
        files.write("spot/planted", [b"x"])
        files.write("spot/new/planted", [b"x"])
        seen = [found.path for found in files.list("", recursive=True)]
        return SECRET if "other/secret" in seen and "spot/secret" in seen else b""

    flips, reads, leaks = race(vol, write)
    assert flips >= 500 and reads >= 10 and leaks == 0  # each is two writes, synced, and a walk
    assert [path.name for path in (vol.parent / "spool").iterdir()] == ["secret"]


@pytest.mark.timeout(20)  # "in under a second" each: one that opened the FIFO would wait for ever
@pytest.mark.root
def test_46_what_is_no_file_is_never_opened(vol: Path) -> None:
    base = vol / "workspace"
    os.mkfifo(base / "fifo")
    os.mknod(base / "zero", 0o20666, os.makedev(1, 5))
    os.mknod(base / "disk", 0o60666, os.makedev(254, 0))
    os.mknod(base / "socket", 0o140666)
    (base / "to-fifo").symlink_to("fifo")
    files = VolumeFiles(vol)
    for name in ("fifo", "zero", "disk", "socket", "to-fifo"):
        with pytest.raises(Conflict):
            files.open(name)
    for name in ("fifo", "zero", "disk", "socket"):
        assert files.stat(name).kind == "other"
        with pytest.raises(Conflict):
            files.list(name)
        with pytest.raises(Conflict):
            files.write(f"{name}/x", [b"x"])
    assert {found.kind for found in files.list("") if found.path not in ("artifacts", "to-fifo")} == {"other"}
