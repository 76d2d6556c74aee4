"""The pool: made whole or not at all, found again, grown, shared by processes, full, cleaned up by name."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import BadInput, Conflict, DiskFull
from orchestrator.workspaces import btrfs_calls, loop_device, mounts
from orchestrator.workspaces.btrfs import BtrfsStore
from orchestrator.workspaces.choice import choose
from orchestrator.workspaces.pool import Pool
from tests.volume_stores import MIB, new_pool

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.root


@pytest.fixture
def pool() -> Iterator[Pool]:
    with new_pool(256 * MIB) as made:
        yield made


def size_bytes(pool: Pool) -> int:
    found = os.statvfs(pool.point)
    return found.f_blocks * found.f_frsize


async def test_it_is_found_again_and_grows(pool: Pool) -> None:
    store = BtrfsStore(pool.point)
    await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=64 * MIB)
    store.files("sbx_a").write("x", [b"1"])
    assert pool.open() == pool.point, "mounted already"
    before = size_bytes(pool)
    larger = Pool(pool.folder, pool.label, 512 * MIB)
    larger.open()
    assert size_bytes(pool) == before + 256 * MIB, "while it is in use"
    pool.close()  # as after a reboot
    assert mounts.mounted(pool.point) is None and loop_device.attached(pool.file) is None
    assert await store.list() == []
    largest = Pool(pool.folder, pool.label, 640 * MIB)
    largest.open()
    assert size_bytes(pool) == before + 384 * MIB
    assert store.files("sbx_a").stat("x").size_bytes == 1
    assert (await store.disk("sbx_a")).limit_bytes == 64 * MIB
    assert pool.file.stat().st_blocks * 512 < 64 * MIB, "sparse"


def test_two_processes_make_one(short_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.workspaces.pool import Pool;"
        "Pool(Path(sys.argv[1]), 'carrel-test', 256 << 20).open()"
    )
    try:
        both = [subprocess.Popen([sys.executable, "-c", code, str(short_dir)], cwd=ROOT) for _ in range(3)]
        assert [one.wait() for one in both] == [0, 0, 0]
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        assert len([line for line in lines if f" {short_dir}/pool " in line]) == 1
    finally:
        subprocess.run(["umount", str(short_dir / "pool")], check=False)


def test_a_second_mount_of_its_file_takes_the_same_device(pool: Pool) -> None:
    """Two devices on one file would spoil it."""
    held, device = loop_device.attach(pool.file)
    os.close(held)
    assert device == loop_device.attached(pool.file)
    here = [str(path) for path in Path("/sys/block").glob("loop*/loop/backing_file") if _text(path) == str(pool.file)]
    assert len(here) == 1


def test_one_that_is_no_btrfs_is_said_and_stays(short_dir: Path) -> None:
    pool = Pool(short_dir, "carrel-test", 256 * MIB)
    pool.file.write_bytes(b"\0" * MIB)
    with pytest.raises(BadInput) as caught:
        pool.open()
    assert caught.value.field == "workspace_store" and caught.value.data["remedy"]
    assert pool.file.stat().st_size >= MIB and loop_device.attached(pool.file) is None


async def test_a_full_pool_is_named_and_recovers(pool: Pool) -> None:
    store = BtrfsStore(pool.point, below=pool.folder)
    await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    files = store.files("sbx_a")
    await store.snapshot("sbx_a", "snp_before")
    with pytest.raises(DiskFull):
        for number in range(300):
            files.write(f"f{number}", [os.urandom(MIB)])
    try:  # there may be room for one more: then it is whole; else it is said, and there is none
        await store.snapshot("sbx_a", "snp_full")
    except DiskFull as full:
        assert full.data["where"] == "snapshot"
    for snapshot_id, _ in await store.snapshots():
        await store.digest(snapshot_id)
    assert not [path for path in (pool.point / "snapshots").iterdir() if path.name.startswith(".")]
    await store.drop("snp_full")
    await store.remove("sbx_a")
    descriptor = os.open(pool.point, os.O_RDONLY)
    try:
        while (await store.facts()).free_bytes < 64 * MIB:  # by and by
            btrfs_calls.sync(descriptor)
            await asyncio.sleep(0)
    finally:
        os.close(descriptor)
    await store.begin("sbx_b", "snp_before", disk_bytes=0)
    store.files("sbx_b").write("x", [os.urandom(MIB)])


async def test_what_has_its_name_outlives_the_machine(pool: Pool) -> None:
    """The pool's file as it is when `snapshot` returns, mounted elsewhere: as after a power cut. Nobody synced."""
    store = BtrfsStore(pool.point)
    slot = await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    for number in range(200):
        (slot.path / "vol" / "workspace" / f"f{number}").write_bytes(os.urandom(20_000))
    await store.snapshot("sbx_a", "snp_1")
    after = pool.folder / "after"
    after.mkdir()
    subprocess.run(["cp", "--sparse=always", str(pool.file), str(after)], check=True)
    whole = await store.digest("snp_1")
    assert whole[1] == 200 * 20_000
    pool.close()
    later = Pool(after, pool.label, 256 * MIB)
    later.open()
    try:
        assert await BtrfsStore(later.point).digest("snp_1") == whole
    finally:
        later.close()


async def test_nested_subvolumes_are_refused_and_removed(pool: Pool) -> None:
    store = BtrfsStore(pool.point)
    slot = await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    folder = slot.path / "vol" / "workspace"
    for _ in range(3):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            btrfs_calls.create_subvolume(descriptor, "nested")
        finally:
            os.close(descriptor)
        folder /= "nested"
    (folder / "file").touch()
    with pytest.raises(Conflict):
        await store.snapshot("sbx_a", "snp_1")
    assert await store.snapshots() == []
    await store.remove("sbx_a")
    assert list((pool.point / "slots").iterdir()) == []


def test_clean_takes_a_pool_whose_file_is_gone() -> None:
    with new_pool(256 * MIB) as pool:
        device = loop_device.attached(pool.file)
        assert device is not None
        pool.file.unlink()
        done = subprocess.run(
            [ROOT / ".ci" / "clean", "containers"],
            env={**os.environ, "INSTALLATION": "none-such"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"pool {device.name}, of {pool.file}" in done.stdout
        assert mounts.mounted(pool.point) is None


@pytest.mark.parametrize("place", ["slots/sbx_a", "snapshots/snp_a"])
def test_auto_stays_with_what_is_there(short_dir: Path, place: str) -> None:
    def chosen(wanted: str = "auto") -> str:
        return choose(wanted, short_dir, label="x", btrfs_path=None, size_bytes=0, allocate=False).kind

    assert shutil.which("mkfs.btrfs", path=os.environ["PATH"] + ":/usr/sbin")
    assert (chosen(), chosen("directory")) == ("btrfs", "directory")
    (short_dir / place).mkdir(parents=True)
    assert (chosen(), chosen("btrfs")) == ("directory", "btrfs")


async def test_an_existing_btrfs_counts_from_its_first_limit(pool: Pool) -> None:
    home = pool.point / "theirs"
    home.mkdir()
    chosen = choose("auto", pool.folder / "d", label="x", btrfs_path=home, size_bytes=0, allocate=False)
    assert (chosen.kind, chosen.slots) == ("btrfs", home / "slots")
    store = chosen.open()
    await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=8 * MIB)
    with pytest.raises(DiskFull):
        store.files("sbx_a").write("x", [os.urandom(MIB)] * 9)
    with pytest.raises(BadInput):
        choose("auto", pool.folder, label="x", btrfs_path=Path("/proc"), size_bytes=0, allocate=False)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
