"""The port SnapshotStore, sentence by sentence, on every store: what is kept, begun, measured, bounded, dropped."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from orchestrator.errors import BadInput, Conflict, DiskFull, Infeasible, NotFound
from orchestrator.workspace import Files, SnapshotStore, UnpackLimits
from tests.volume_stores import MIB, store_at


def content(files: Files, path: str) -> bytes:
    opened = files.open(path)
    try:
        return opened.read(0, 99)
    finally:
        opened.close()


@pytest.fixture
async def vol(snapshot_store: SnapshotStore) -> Path:
    slot = await snapshot_store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    return slot.path / "vol"


async def begun(store: SnapshotStore, sandbox_id: str = "sbx_b", snapshot_id: str = "snp_1") -> Path:
    return (await store.begin(sandbox_id, snapshot_id, disk_bytes=0)).path / "vol"


async def test_a_snapshot_stays_as_it_was(snapshot_store: SnapshotStore, vol: Path) -> None:
    files = snapshot_store.files("sbx_a")
    files.write("x", [b"1"])
    files.write("/state/memory", [b"harness"])
    await snapshot_store.snapshot("sbx_a", "snp_1")
    files.write("x", [b"2"])
    (vol / "state" / "memory").unlink()
    kept = snapshot_store.snapshot_files("snp_1")
    assert content(kept, "x") == b"1" and content(kept, "/state/memory") == b"harness"
    for change in (
        lambda: kept.write("x", [b"3"]),
        lambda: kept.mkdir("d"),
        lambda: kept.move("x", "y"),
        lambda: kept.remove("x"),
        lambda: kept.unpack("", [b""], "tar", UnpackLimits(1)),
    ):
        with pytest.raises(Conflict) as caught:
            change()
        assert caught.value.data["state"] == "read_only"
    assert content(kept, "x") == b"1"
    assert [snapshot_id for snapshot_id, _ in await snapshot_store.snapshots()] == ["snp_1"]


async def test_taken_again_it_is_the_first_one(snapshot_store: SnapshotStore, vol: Path) -> None:
    snapshot_store.files("sbx_a").write("x", [b"1"])
    await snapshot_store.snapshot("sbx_a", "snp_1")
    snapshot_store.files("sbx_a").write("x", [b"2"])
    await snapshot_store.snapshot("sbx_a", "snp_1")
    assert content(snapshot_store.snapshot_files("snp_1"), "x") == b"1"


async def test_what_begins_from_it_goes_its_own_way(snapshot_store: SnapshotStore, vol: Path) -> None:
    snapshot_store.files("sbx_a").write("x", [b"1"])
    await snapshot_store.snapshot("sbx_a", "snp_1")
    slot = await snapshot_store.begin("sbx_b", "snp_1", disk_bytes=0)
    assert slot == snapshot_store.slot("sbx_b") and slot.spool.is_dir() and slot.socket.parent.is_dir()
    await begun(snapshot_store, "sbx_c")
    snapshot_store.files("sbx_b").write("x", [b"b"])
    await begun(snapshot_store)  # again: what is there stays
    assert content(snapshot_store.files("sbx_b"), "x") == b"b"
    assert content(snapshot_store.files("sbx_c"), "x") == b"1"
    assert content(snapshot_store.snapshot_files("snp_1"), "x") == b"1"
    # A snapshot of what was begun, and on from there; the middle goes.
    await snapshot_store.snapshot("sbx_b", "snp_2")
    await snapshot_store.remove("sbx_b")
    for _ in range(2):
        await snapshot_store.drop("snp_1")
    assert (await snapshot_store.snapshot_disk("snp_2")).used_bytes > 0
    with pytest.raises(NotFound):
        await snapshot_store.snapshot_disk("snp_1")
    await begun(snapshot_store, "sbx_d", "snp_2")
    assert content(snapshot_store.files("sbx_d"), "x") == b"b"
    assert content(snapshot_store.files("sbx_c"), "x") == b"1"
    assert [snapshot_id for snapshot_id, _ in await snapshot_store.snapshots()] == ["snp_2"]


async def test_what_is_not_here_is_not_found(snapshot_store: SnapshotStore, vol: Path) -> None:
    for ask in (
        snapshot_store.snapshot("sbx_never", "snp_1"),
        snapshot_store.begin("sbx_b", "snp_never", disk_bytes=0),
        snapshot_store.digest("snp_never"),
        snapshot_store.disk("sbx_never"),
        snapshot_store.limit("sbx_never", 0),
        snapshot_store.snapshot("sbx_a", "../snp_1"),
        snapshot_store.drop("snp_/../../x"),
        snapshot_store.snapshot("sbx_a", "other"),
    ):
        with pytest.raises(NotFound):
            await ask
    with pytest.raises(NotFound):
        snapshot_store.snapshot_files("snp_never")
    assert not await snapshot_store.holds("sbx_b")
    assert await snapshot_store.snapshots() == []


async def test_only_snapshots_are_listed(snapshot_store: SnapshotStore, vol: Path) -> None:
    await snapshot_store.snapshot("sbx_a", "snp_1")
    beside = kept_at(snapshot_store)
    for foreign in ("lost+found", "notes", ".hidden"):
        (beside / foreign).mkdir()
    assert [snapshot_id for snapshot_id, _ in await snapshot_store.snapshots()] == ["snp_1"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kept_at(store: SnapshotStore) -> Path:
    return store.slot("sbx_a").path.parent.parent / "snapshots"


async def test_everything_a_tree_can_hold_comes_back(snapshot_store: SnapshotStore, vol: Path) -> None:
    base = vol / "workspace"
    odd = os.fsdecode(b"line\nbreak \xff\x1b[2J")
    (base / odd).write_bytes(b"odd")
    (base / odd).chmod(0o4751)
    (base / "shut").mkdir(mode=0o500)
    (base / "one").write_bytes(b"linked")
    (base / "shut" / "two").hardlink_to(base / "one")
    (base / "out").symlink_to("/etc/passwd")
    (base / "dead").symlink_to("nowhere\n")
    (base / "empty").touch()
    os.setxattr(base / "one", "user.note", b"\0attribute")
    with (base / "sparse").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"tail")
        file.truncate(1 << 40)
    for path in (base / "one", base / "shut", base):
        os.utime(path, ns=(1_000_000_001, 1_600_000_000_123_456_789))
    os.utime(base / "out", ns=(5, 7), follow_symlinks=False)
    await snapshot_store.snapshot("sbx_a", "snp_1")
    there = await begun(snapshot_store) / "workspace"
    assert names(there) == names(base)
    assert (there / odd).read_bytes() == b"odd" and (there / odd).stat().st_mode & 0o7777 == 0o4751
    assert (there / "shut").stat().st_mode & 0o7777 == 0o500
    assert (there / "one").stat().st_ino == (there / "shut" / "two").stat().st_ino
    assert not (there / "one").samefile(base / "one")
    assert (there / "one").stat().st_nlink == 2 and (there / "one").read_bytes() == b"linked"
    assert str((there / "out").readlink()) == "/etc/passwd" and str((there / "dead").readlink()) == "nowhere\n"
    assert os.getxattr(there / "one", "user.note") == b"\0attribute"
    sparse = (there / "sparse").stat()
    assert sparse.st_size == 1 << 40 and sparse.st_blocks * 512 < 1_000_000
    with (there / "sparse").open("rb") as file:
        file.seek(4_999_999)
        assert file.read(6) == b"\0tail\0"
    for path in (there / "one", there / "shut", there):
        assert path.stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (there / "out").lstat().st_mtime_ns == 7
    for path in (base / "one", base / odd, base / "shut", base):
        copy = there / path.relative_to(base)
        assert (copy.stat().st_uid, copy.stat().st_gid) == (path.stat().st_uid, path.stat().st_gid)


async def test_what_is_no_file_is_never_opened(snapshot_store: SnapshotStore, vol: Path) -> None:
    base = vol / "workspace"
    os.mkfifo(base / "fifo")
    with socket.socket(socket.AF_UNIX) as line:
        line.bind(str(base / "s"))
    (base / "file").write_bytes(b"1")
    await snapshot_store.snapshot("sbx_a", "snp_1")
    _, size_bytes, entries = await snapshot_store.digest("snp_1")
    assert (size_bytes, entries) == (1, 5), "workspace, artifacts, file, state, home"
    assert content(snapshot_store.snapshot_files("snp_1"), "file") == b"1"
    assert (await begun(snapshot_store) / "workspace" / "file").read_bytes() == b"1"


async def test_a_digest_is_of_names_kinds_modes_targets_and_content(snapshot_store: SnapshotStore, vol: Path) -> None:
    base = vol / "workspace"
    (base / "a").mkdir()
    (base / "a" / "c").write_bytes(b"12345")
    (base / "a-b").symlink_to("a")

    async def now(number: list[int] = [0]) -> tuple[str, int, int]:  # noqa: B006 (counts)
        number[0] += 1
        await snapshot_store.snapshot("sbx_a", f"snp_{number[0]}")
        return await snapshot_store.digest(f"snp_{number[0]}")

    first = await now()
    assert first[1:] == (5, 7)
    os.utime(base / "a" / "c", (1, 1))
    assert await now() == first, "times do not count"
    seen = {first[0]}
    (base / "a" / "c").write_bytes(b"12346")
    seen.add((await now())[0])
    (base / "a" / "c").chmod(0o600)
    seen.add((await now())[0])
    (base / "a-b").unlink()
    (base / "a-b").symlink_to("b")
    seen.add((await now())[0])
    (base / "a" / "c").rename(base / "a" / "d")
    seen.add((await now())[0])
    (base / "e").mkdir()
    seen.add((await now())[0])
    assert len(seen) == 6
    holes = base / "holes"
    with holes.open("wb") as file:
        file.truncate(3_000_000)
    hollow = await now()
    holes.write_bytes(bytes(3_000_000))
    assert await now() == hollow, "a hole is zeros"
    holes.write_bytes(bytes(3_000_001))
    assert (await now())[0] != hollow[0]


async def test_the_digest_is_the_same_on_every_store(snapshot_store: SnapshotStore, vol: Path) -> None:
    """Written down once: an archive made today is to be verified in years."""
    shutil.rmtree(vol / "workspace" / "artifacts")
    shutil.rmtree(vol / "state" / "home")
    for folder in (vol / "workspace", vol / "state"):
        folder.chmod(0o755)
    file = vol / "workspace" / "file"
    file.write_bytes(b"hello\n")
    file.chmod(0o644)
    (vol / "workspace" / "link").symlink_to("file")
    await snapshot_store.snapshot("sbx_a", "snp_1")
    assert await snapshot_store.digest("snp_1") == (DIGEST, 6, 4)


#: printf 'd 755 5 0\nstated 755 9 0\nworkspacef 644 14 6\nworkspace/file\0\0\0\0\0\0\0\0hello\nl 0 14 4\n…' | sha256sum
DIGEST = "b57f1c21cc5619bf170a0c070eca3175203d0deb6cc85dc8eaa0fd50494ec0e0"


async def test_disk_says_what_a_workspace_takes(snapshot_store: SnapshotStore, vol: Path) -> None:
    before = await snapshot_store.disk("sbx_a")
    assert before.limit_bytes == 0
    await snapshot_store.prepare("sbx_b", inherit=None, seeds=[], disk_bytes=0)
    (snapshot_store.slot("sbx_b").path / "vol" / "workspace" / "big").write_bytes(os.urandom(3_000_000))
    os.sync()
    seen = await snapshot_store.disk("sbx_b")
    assert 3_000_000 <= seen.used_bytes <= 3_000_000 + before.used_bytes + 200_000
    facts = await snapshot_store.facts()
    assert facts.kind in ("directory", "btrfs")
    assert 0 < facts.free_bytes <= facts.total_bytes
    assert (seen.files == 5) if not facts.limits_disk else seen.files is None


async def test_a_limit_is_kept_or_refused(snapshot_store: SnapshotStore, vol: Path) -> None:
    facts = await snapshot_store.facts()
    if not facts.limits_disk:
        for ask in (
            snapshot_store.limit("sbx_a", 1 << 30),
            snapshot_store.prepare("sbx_b", inherit=None, seeds=[], disk_bytes=1 << 30),
            snapshot_store.prepare("sbx_c", inherit="sbx_a", seeds=[], disk_bytes=1 << 30),
        ):
            with pytest.raises(Infeasible) as caught:
                await ask
            assert caught.value.data["field"] == "disk_bytes"
        assert not await snapshot_store.holds("sbx_c") and await snapshot_store.holds("sbx_a")
        await snapshot_store.limit("sbx_a", 0)
        return
    await snapshot_store.limit("sbx_a", 8 * MIB)
    await snapshot_store.prepare("sbx_c", inherit="sbx_a", seeds=[], disk_bytes=16 * MIB)
    assert (await snapshot_store.disk("sbx_a")).limit_bytes == 16 * MIB, "that of its newest sandbox"
    files = snapshot_store.files("sbx_c")
    files.write("most", [bytes([number]) * MIB for number in range(10)])
    with pytest.raises(DiskFull):
        files.write("more", [bytes([number]) * MIB for number in range(10)])
    assert [found.path for found in files.list("")] == ["artifacts", "most"]
    assert 10 * MIB <= (await snapshot_store.disk("sbx_c")).used_bytes <= 16 * MIB
    # What it shares with a snapshot counts as its own; a fork has its own limit, from its birth.
    await snapshot_store.snapshot("sbx_c", "snp_1")
    with pytest.raises(Infeasible):
        await snapshot_store.begin("sbx_b", "snp_1", disk_bytes=8 * MIB)
    assert not await snapshot_store.holds("sbx_b")
    await snapshot_store.begin("sbx_b", "snp_1", disk_bytes=12 * MIB)
    with pytest.raises(DiskFull):
        snapshot_store.files("sbx_b").write("more", [bytes([number]) * MIB for number in range(4)])
    with pytest.raises(Infeasible) as caught:
        await snapshot_store.limit("sbx_c", 8 * MIB)
    assert caught.value.data["field"] == "disk_bytes" and caught.value.data["limit"]
    await snapshot_store.limit("sbx_c", 24 * MIB)
    files.write("more", [bytes([number]) * MIB for number in range(10)])
    await snapshot_store.limit("sbx_c", 0)
    assert (await snapshot_store.disk("sbx_c")).limit_bytes == 0
    files.write("still more", [bytes([number]) * MIB for number in range(10)])


async def test_what_an_archive_brings_is_a_snapshot(snapshot_store: SnapshotStore, vol: Path) -> None:
    def fill(folder: Path) -> None:
        for name in ("workspace", "state"):
            (folder / name).mkdir()
        (folder / "workspace" / "x").write_bytes(b"from afar")

    def broken(folder: Path) -> None:
        fill(folder)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await snapshot_store.receive("snp_1", broken)
    assert await snapshot_store.snapshots() == [] and names(kept_at(snapshot_store)) == []
    for _ in range(2):
        await snapshot_store.receive("snp_1", fill)
    assert (await begun(snapshot_store) / "workspace" / "x").read_bytes() == b"from afar"
    with pytest.raises(Conflict):
        snapshot_store.snapshot_files("snp_1").write("x", [b"2"])


@pytest.fixture
async def elsewhere(short_dir: Path) -> SnapshotStore:
    """A store on another host, of the simplest kind."""
    return store_at("directory", short_dir / "elsewhere")


async def test_what_was_packed_is_loaded_on_any_store(
    snapshot_store: SnapshotStore, vol: Path, elsewhere: SnapshotStore
) -> None:
    snapshot_store.files("sbx_a").write("large", [os.urandom(MIB)])
    (vol / "workspace" / "link").symlink_to("/etc/passwd")
    (vol / "state" / "one").write_bytes(b"1")
    os.link(vol / "state" / "one", vol / "state" / "two")
    os.mkfifo(vol / "workspace" / "fifo")
    await snapshot_store.snapshot("sbx_a", "snp_1")
    snapshot_store.files("sbx_a").write("small", [b"2"])
    (vol / "workspace" / "link").unlink()
    await snapshot_store.snapshot("sbx_a", "snp_2")
    whole, difference = (snapshot_store.pack("snp_1"), snapshot_store.pack("snp_2", below="snp_1"))
    layers = [b"".join(whole), b"".join(difference)]
    assert len(layers[0]) > MIB > 50 * len(layers[1])
    await elsewhere.load("snp_2", [layers[:1], layers[1:]])
    assert await elsewhere.digest("snp_2") == await snapshot_store.digest("snp_2")
    # And back into the store it came from.
    back = elsewhere.pack("snp_2")
    await snapshot_store.load("snp_3", [back])
    assert await snapshot_store.digest("snp_3") == await snapshot_store.digest("snp_2")
    for _ in range(2):
        await snapshot_store.load("snp_3", [[b"there already"]])
    slot = await snapshot_store.begin("sbx_b", "snp_3", disk_bytes=0)
    assert (slot.path / "vol" / "state" / "one").stat().st_nlink == 2
    assert (slot.path / "vol" / "state").stat().st_uid == (vol / "state").stat().st_uid
    back.close()
    assert list(back) == []


async def test_what_is_no_workspace_is_not_kept(snapshot_store: SnapshotStore, vol: Path) -> None:
    await snapshot_store.snapshot("sbx_a", "snp_1")
    packed = b"".join(snapshot_store.pack("snp_1"))

    def breaks() -> Iterator[bytes]:
        yield packed[:100]
        raise ConnectionResetError

    for layers in ([[packed[:-20]]], [[b"something else"]], [[zstandard.compress(bytes(1024))]]):
        with pytest.raises(BadInput) as caught:
            await snapshot_store.load("snp_2", layers, limits=UnpackLimits(MIB))
        assert caught.value.field == "archive"
    with pytest.raises(ConnectionResetError):
        await snapshot_store.load("snp_2", [breaks()])
    with pytest.raises(NotFound):
        snapshot_store.pack("snp_2")
    with pytest.raises(NotFound):
        snapshot_store.pack("snp_1", below="snp_2")
    assert names(kept_at(snapshot_store)) == ["snp_1"]


async def test_many_at_once_are_each_whole(snapshot_store: SnapshotStore, vol: Path) -> None:
    for number in range(30):
        snapshot_store.files("sbx_a").write(f"d{number % 3}/f{number}", [b"%d" % number])
    await asyncio.gather(
        *(snapshot_store.snapshot("sbx_a", f"snp_{number % 3}") for number in range(9)),
        *(snapshot_store.snapshots() for _ in range(9)),
    )
    assert [snapshot_id for snapshot_id, _ in await snapshot_store.snapshots()] == ["snp_0", "snp_1", "snp_2"]
    await asyncio.gather(*(begun(snapshot_store, f"sbx_f{number % 4}", "snp_0") for number in range(8)))
    assert len({await snapshot_store.digest(f"snp_{number}") for number in range(3)}) == 1
    for number in range(4):
        assert len(snapshot_store.files(f"sbx_f{number}").list("", recursive=True)) == 34
    assert names(kept_at(snapshot_store)) == ["snp_0", "snp_1", "snp_2"]


CRASHING = """
import asyncio, os, sys
from pathlib import Path
from tests.volume_stores import store_at
kind, folder, verb, steps = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
store = store_at(kind, folder)
def count(name, arguments):
    global steps
    here = name == "open" and str(folder) in str(arguments[0])
    if here or name in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.symlink", "fcntl.ioctl"):
        steps -= 1
        if steps < 0:
            os._exit(7)
sys.addaudithook(count)
asyncio.run({
    "snapshot": lambda: store.snapshot("sbx_a", "snp_new"),
    "begin": lambda: store.begin("sbx_new", "snp_old", disk_bytes=0),
    "drop": lambda: store.drop("snp_old"),
    "remove": lambda: store.remove("sbx_a"),
}[verb]())
"""


@pytest.mark.parametrize("verb", ["snapshot", "begin", "drop", "remove"])
async def test_a_crash_between_any_two_steps_leaves_all_or_nothing(
    snapshot_store: SnapshotStore, vol: Path, verb: str
) -> None:
    folder = vol.parent.parent.parent
    crashes = 0
    files = snapshot_store.files("sbx_a")
    for name in ("x", "d/y"):
        files.write(name, [b"1"])
    (vol / "workspace" / "z").hardlink_to(vol / "workspace" / "x")
    await snapshot_store.snapshot("sbx_a", "snp_base")
    whole = await snapshot_store.digest("snp_base")
    kind = (await snapshot_store.facts()).kind
    for steps in range(200):
        await snapshot_store.begin("sbx_a", "snp_base", disk_bytes=0)
        await snapshot_store.snapshot("sbx_a", "snp_old")
        command = [sys.executable, "-c", CRASHING, kind, str(folder), verb, str(steps)]
        died = subprocess.run(command, check=False)
        kept = [snapshot_id for snapshot_id, _ in await snapshot_store.snapshots()]
        assert names(kept_at(snapshot_store)) == kept, "the rest of a crash is gone"
        for snapshot_id in kept:
            assert await snapshot_store.digest(snapshot_id) == whole, (steps, snapshot_id)
        if await snapshot_store.holds("sbx_new"):
            await snapshot_store.snapshot("sbx_new", "snp_proof")
            assert await snapshot_store.digest("snp_proof") == whole
        # And it can be said again.
        if verb == "snapshot":
            await snapshot_store.snapshot("sbx_a", "snp_new")
            assert await snapshot_store.digest("snp_new") == whole
        if verb == "begin":
            await snapshot_store.begin("sbx_new", "snp_old", disk_bytes=0)
            assert content(snapshot_store.files("sbx_new"), "d/y") == b"1"
        for snapshot_id in ("snp_new", "snp_old", "snp_proof"):
            await snapshot_store.drop(snapshot_id)
        for sandbox_id in ("sbx_new", "sbx_a"):
            await snapshot_store.remove(sandbox_id)
        await snapshot_store.list()
        assert names(folder / "slots") == []
        if died.returncode == 0:
            break
        assert died.returncode == 7
        crashes += 1
    assert crashes >= 3, "it hardly crashed: this test tests nothing"
