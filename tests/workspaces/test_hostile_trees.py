"""Copies, digests and sizes of trees that somebody hostile made, in bounded memory; and while they are being changed.

The test is its own attacker: a process that renames as fast as the kernel can, and files whose opening would block.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.errors import Conflict
from orchestrator.workspaces.copying import copy_tree
from orchestrator.workspaces.measuring import digest, room
from orchestrator.workspaces.removal import remove_tree

SECRET = b"the neighbour's\n"

MEASURED = """
import resource, sys
from pathlib import Path
from orchestrator.workspaces.copying import copy_tree
from orchestrator.workspaces.measuring import digest, room
here = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = copy_tree(here / "tree", here / "copy", here / "links")
assert digest(here / "tree") == digest(here / "copy")
room(here / "tree")
print(done.files, done.folders, done.symlinks, done.hard_links, done.left_out)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def copied(here: Path) -> tuple[list[int], int]:
    """(counts, KiB of memory it took), in a process of its own with few descriptors."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(here)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160)),
    )
    counts, memory_kib = done.stdout.splitlines()
    return [int(count) for count in counts.split()], int(memory_kib)


@pytest.mark.parametrize("wide", [3000, pytest.param(100_000, marks=pytest.mark.full)])
def test_wide_ones(short_dir: Path, wide: int) -> None:
    tree = short_dir / "tree"
    (tree / "files").mkdir(parents=True)
    (tree / "folders").mkdir()
    for number in range(wide):
        (tree / "files" / f"{number}").touch()
    for number in range(wide // 10):
        (tree / "folders" / f"{number}").mkdir()
    counts, memory_kib = copied(short_dir)
    assert counts == [wide, 3 + wide // 10, 0, 0, 0]
    assert memory_kib < 64 * 1024
    assert remove_tree(short_dir / "copy") and remove_tree(tree)


@pytest.mark.parametrize("deep", [500, pytest.param(10_000, marks=pytest.mark.full)])
def test_deep_ones(short_dir: Path, deep: int) -> None:
    tree = short_dir / "tree"
    tree.mkdir()
    here = os.open(tree, os.O_RDONLY)
    for number in range(deep):  # 10,000: deeper than any path can say
        os.mkdir("d", dir_fd=here)
        os.mkdir("e", dir_fd=here)
        os.close(os.open(f"f{number}", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
        deeper = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    counts, memory_kib = copied(short_dir)
    assert counts == [deep, 2 * deep + 1, 0, 0, 0]
    assert memory_kib < 64 * 1024
    assert remove_tree(short_dir / "copy") and remove_tree(tree)


def test_many_links_to_many_files(short_dir: Path) -> None:
    tree = short_dir / "tree"
    for name in ("a", "b"):
        (tree / name).mkdir(parents=True)
    for number in range(500):
        (tree / "a" / f"{number}").write_text(str(number))
        (tree / "b" / f"{number}").hardlink_to(tree / "a" / f"{number}")
    counts, _ = copied(short_dir)
    assert counts == [500, 3, 0, 500, 0]
    for number in (0, 250, 499):
        assert (short_dir / "copy" / "a" / f"{number}").samefile(short_dir / "copy" / "b" / f"{number}")


@pytest.mark.root
@pytest.mark.timeout(60)  # whoever opens the FIFO waits for ever
def test_odd_ones(short_dir: Path) -> None:
    tree = short_dir / "tree"
    tree.mkdir()
    for name in (b"line\nbreak", b"\xff\xfe", b"-rf", b" ", b"...", b"'\"$(reboot)"):
        (tree / os.fsdecode(name)).write_bytes(name)
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "zero", 0o20666, os.makedev(1, 5))
    os.mknod(tree / "socket", 0o140666)
    (tree / "out").symlink_to("/etc")
    (tree / "loop").symlink_to("loop")
    with (tree / "huge").open("wb") as file:
        file.truncate(1 << 40)
    counts, _ = copied(short_dir)
    assert counts == [7, 1, 2, 0, 3]
    assert (short_dir / "copy" / "huge").stat().st_blocks == 0
    assert room(short_dir / "copy")[0] < 1 << 20


@pytest.mark.root
def test_another_filesystem_in_it_is_refused(short_dir: Path) -> None:
    point = short_dir / "tree" / "a" / "mounted"
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "carrel-test", str(point)], check=True)
    try:
        with pytest.raises(Conflict):
            copy_tree(short_dir / "tree", short_dir / "copy", short_dir / "links")
        with pytest.raises(Conflict):
            digest(short_dir / "tree")
    finally:
        subprocess.run(["umount", str(point)], check=True)


RENAMER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
folder = os.open(sys.argv[1], os.O_PATH)
flips = 0
print("ready", flush=True)
while not os.path.exists(sys.argv[2]):
    for pair in ((b"spot", b"link"), (b"file", b"filelink"), (b"plain", b"fifo"), (b"spot", b"file")) * 20:
        assert libc.renameat2(folder, pair[0], folder, pair[1], 2) == 0  # RENAME_EXCHANGE: never neither
        flips += 1
print(flips)
"""


@pytest.mark.parametrize("for_s", [pytest.param(3, id="3 s"), pytest.param(60, id="60 s", marks=pytest.mark.full)])
@pytest.mark.timeout(180)
def test_a_racing_renamer_leads_nowhere(short_dir: Path, for_s: int) -> None:
    """Folders, files, links out and FIFOs change places: nothing outside is read, nothing waits, nothing is written."""
    outside = short_dir / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(SECRET)
    tree = short_dir / "tree"
    (tree / "spot").mkdir(parents=True)
    (tree / "spot" / "secret").write_bytes(b"own\n")
    (tree / "link").symlink_to(outside)
    (tree / "file").write_bytes(b"own\n")
    (tree / "filelink").symlink_to(outside / "secret")
    (tree / "plain").write_bytes(b"own\n")
    os.mkfifo(tree / "fifo")
    stop = short_dir / "stop"
    process = subprocess.Popen([sys.executable, "-c", RENAMER, str(tree), str(stop)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    copies = 0
    try:
        assert process.stdout.readline() == "ready\n"
        until = time.monotonic() + for_s
        while time.monotonic() < until:
            copy_tree(tree, short_dir / "copy", short_dir / "links")
            for found in (short_dir / "copy").rglob("*"):
                if found.is_file() and not found.is_symlink():
                    assert found.read_bytes() == b"own\n"
            assert remove_tree(short_dir / "copy")
            room(tree)
            copies += 1
        stop.touch()
        assert int(process.stdout.read()) > 500
    finally:
        stop.touch()
        process.stdout.close()
        process.wait()
    assert copies > 3
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_bytes() == SECRET
