"""The ports of workspaces, sentence by sentence, on every store. As root the files are the harness's own."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator.errors import BadInput, Conflict, DiskFull, NotFound
from orchestrator.workspace import HARNESS_UID, Files, Seed, SnapshotStore, WorkspaceStore
from orchestrator.workspaces.blobs import DirectoryBlobs
from orchestrator.workspaces.directory import DirectoryStore


@pytest.fixture
def store(snapshot_store: SnapshotStore) -> WorkspaceStore:
    return snapshot_store


@pytest.fixture
async def files(store: WorkspaceStore) -> Files:
    await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    return store.files("sbx_a")


def seed(folder: Path, path: str, content: bytes = b"seed\n", mode: int = 0o644) -> Seed:
    source = folder / hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()
    source.write_bytes(content)
    return Seed(path, source, mode)


def content(files: Files, path: str) -> bytes:
    opened = files.open(path)
    try:
        return opened.read(0, 99)
    finally:
        opened.close()


# -- slots ------------------------------------------------------------------------------------------------------------


async def test_a_slot_has_its_three_parts_and_the_harness_owns_its_own(store: WorkspaceStore) -> None:
    slot = await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    assert slot == store.slot("sbx_a")
    for private in ("ctl", "spool"):
        assert (slot.path / private).stat().st_mode & 0o777 == 0o700
    for own in ("workspace", "state"):
        assert (slot.path / "vol" / own).stat().st_uid == (HARNESS_UID if os.geteuid() == 0 else os.geteuid())
    assert await store.holds("sbx_a")
    assert [sandbox_id for sandbox_id, _ in await store.list()] == ["sbx_a"]


async def test_only_slots_are_listed(store: WorkspaceStore, short_dir: Path) -> None:
    slot = await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    for foreign in ("lost+found", "notes", ".hidden"):
        (slot.path.parent / foreign).mkdir()
    assert [sandbox_id for sandbox_id, _ in await store.list()] == ["sbx_a"]


async def test_prepare_again_keeps_what_is_there(store: WorkspaceStore, short_dir: Path) -> None:
    await store.prepare("sbx_a", inherit=None, seeds=[seed(short_dir, "x")], disk_bytes=0)
    store.files("sbx_a").write("x", [b"worked on"])
    await store.strip("sbx_a")
    slot = await store.prepare("sbx_a", inherit=None, seeds=[seed(short_dir, "x")], disk_bytes=0)
    assert content(store.files("sbx_a"), "x") == b"worked on"
    assert slot.socket.parent.is_dir() and slot.spool.is_dir()


async def test_seeds_are_laid_in_with_their_mode_and_owner(store: WorkspaceStore, short_dir: Path) -> None:
    hostile = os.fsdecode(b"line\nbreak \xff\x1b[2J")
    seeds = [
        seed(short_dir, "a/b/run", b"#!/bin/sh\n", 0o4755),
        seed(short_dir, hostile),
        seed(short_dir, "big", b"z" * 3_000_000),
    ]
    slot = await store.prepare("sbx_a", inherit=None, seeds=seeds, disk_bytes=0)
    run = slot.path / "vol" / "workspace" / "a" / "b" / "run"
    assert run.read_bytes() == b"#!/bin/sh\n"
    assert run.stat().st_mode & 0o7777 == 0o755, "setuid does not come in"
    owner = HARNESS_UID if os.geteuid() == 0 else os.geteuid()
    assert {run.stat().st_uid, run.parent.stat().st_uid, run.parent.parent.stat().st_uid} == {owner}
    assert {found.path for found in store.files("sbx_a").list("", recursive=True)} >= {hostile, "a/b/run", "big"}


@pytest.mark.parametrize(
    "paths",
    [
        ["../x"],
        ["a/../../x"],
        ["/etc/passwd"],
        ["a\0b"],
        ["x" * 5000],
        ["x" * 300],
        ["a", "a"],
        ["a", "./a"],
        ["a", "a/b"],
        [""],
    ],
)
async def test_bad_seeds_are_named_and_nothing_is_held(
    store: WorkspaceStore, short_dir: Path, paths: list[str]
) -> None:
    with pytest.raises(BadInput) as caught:
        await store.prepare("sbx_a", inherit=None, seeds=[seed(short_dir, path) for path in paths], disk_bytes=0)
    assert caught.value.field == "files"
    assert not await store.holds("sbx_a")


async def test_the_workspace_moves_on_to_the_next_sandbox(store: WorkspaceStore, short_dir: Path) -> None:
    await store.prepare("sbx_a", inherit=None, seeds=[seed(short_dir, "x", b"1")], disk_bytes=0)
    await store.prepare("sbx_b", inherit="sbx_a", seeds=[seed(short_dir, "x", b"2")], disk_bytes=0)
    assert content(store.files("sbx_b"), "x") == b"1"
    # Whoever asks by an older name (a record not yet rewritten when a worker died) finds it, and may take it on.
    assert await store.holds("sbx_a")
    assert content(store.files("sbx_a"), "x") == b"1"
    await store.prepare("sbx_c", inherit="sbx_a", seeds=[], disk_bytes=0)
    assert content(store.files("sbx_c"), "x") == b"1"
    await store.remove("sbx_a")
    await store.remove("sbx_b")
    assert await store.holds("sbx_c")


async def test_what_cannot_be_inherited_is_new(store: WorkspaceStore, short_dir: Path) -> None:
    await store.prepare("sbx_b", inherit="sbx_never", seeds=[seed(short_dir, "x")], disk_bytes=0)
    assert content(store.files("sbx_b"), "x") == b"seed\n"


async def test_strip_keeps_the_files_and_remove_keeps_nothing(store: WorkspaceStore) -> None:
    slot = await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    store.files("sbx_a").write("x", [b"1"])
    (slot.path / "spool" / "frames").write_bytes(b"f")
    for _ in range(2):
        await store.strip("sbx_a")
    assert not slot.spool.exists() and await store.holds("sbx_a")
    for _ in range(2):
        await store.remove("sbx_a")
    assert not slot.path.exists() and not await store.holds("sbx_a") and await store.list() == []
    with pytest.raises(NotFound):
        store.files("sbx_a")


@pytest.mark.parametrize("odd", ["../a", "a/b", "", ".", "x" * 65, "a\0"])
async def test_odd_ids_reach_no_file(store: WorkspaceStore, odd: str) -> None:
    with pytest.raises(NotFound):
        await store.remove(odd)


@pytest.mark.parametrize("inherit", [None, "sbx_a"])
async def test_two_owners_at_once_leave_one_whole_workspace(
    store: WorkspaceStore, short_dir: Path, inherit: str | None
) -> None:
    """A paused owner wakes up while the next one prepares the same sandbox."""
    seeds = [seed(short_dir, f"f{number}") for number in range(20)]
    for round_ in range(10):
        if inherit:
            await store.prepare("sbx_a", inherit=None, seeds=seeds, disk_bytes=0)
        name = f"sbx_{round_}"
        await asyncio.gather(
            *(store.prepare(name, inherit=inherit, seeds=seeds, disk_bytes=0) for _ in range(4)),
        )
        assert len(store.files(name).list("", recursive=True)) == 21
        assert sorted(path.name for path in store.slot(name).path.iterdir()) == ["ctl", "spool", "vol"]
        if inherit:
            await store.remove("sbx_a")


CRASHING = """
import asyncio, os, sys
from pathlib import Path
from tests.volume_stores import store_at
kind, root, inherit, steps = sys.argv[1], Path(sys.argv[2]), sys.argv[3] or None, int(sys.argv[4])
store = store_at(kind, root)
def count(name, arguments):
    global steps
    here = name == "open" and str(root) in str(arguments[0])
    if here or name in ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "fcntl.ioctl"):
        steps -= 1
        if steps < 0:
            os._exit(7)
sys.addaudithook(count)
asyncio.run(store.prepare("sbx_b", inherit=inherit, seeds=[], disk_bytes=0))
"""


@pytest.mark.parametrize("inherit", ["", "sbx_a"])
async def test_a_crash_between_any_two_steps_of_prepare_loses_nothing(
    snapshot_store: SnapshotStore, inherit: str
) -> None:
    crashes = 0
    store = snapshot_store
    kind = (await store.facts()).kind
    root = store.slot("sbx_a").path.parent.parent
    for steps in range(100):
        await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
        store.files("sbx_a").write("work", [b"done"])
        command = [sys.executable, "-c", CRASHING, kind, str(root), inherit, str(steps)]
        died = subprocess.run(command, check=False)
        # Another worker, which may not have learned of sbx_b, takes the execution on in sbx_c.
        await store.prepare("sbx_c", inherit=inherit or None, seeds=[], disk_bytes=0)
        there = [found.path for found in store.files("sbx_c").list("")]
        assert there == (["artifacts", "work"] if inherit else ["artifacts"]), steps
        await store.prepare("sbx_b", inherit="sbx_c", seeds=[], disk_bytes=0)
        for sandbox_id in ("sbx_a", "sbx_b", "sbx_c"):
            await store.remove(sandbox_id)
        assert await store.list() == []
        if died.returncode == 0:
            break
        assert died.returncode == 7
        crashes += 1
    assert crashes > 5, "it never crashed: this test tests nothing"


# -- files ------------------------------------------------------------------------------------------------------------


async def test_write_then_stat_list_open(files: Files) -> None:
    written = files.write("a/b.txt", [b"hello ", b"world"], mode=0o640)
    assert (written.path, written.kind, written.size_bytes, written.mode) == ("a/b.txt", "file", 11, 0o640)
    assert files.stat("a/b.txt") == written == files.stat("/workspace/a/b.txt")
    assert [found.path for found in files.list("")] == ["a", "artifacts"]
    assert [found.path for found in files.list("a")] == ["a/b.txt"]
    opened = files.open("a/b.txt")
    try:
        assert opened.read(6, 99) == b"world" and opened.read(11, 1) == b""
        assert opened.stat == written
        etag = opened.etag
    finally:
        opened.close()
        opened.close()
    files.write("a/b.txt", [b"other"])
    again = files.open("a/b.txt")
    again.close()
    assert again.etag != etag


async def test_state_is_reached_by_its_absolute_name(files: Files) -> None:
    written = files.write("/state/notes/x", [b"1"])
    assert written.path == "/state/notes/x"
    assert [found.path for found in files.list("/state/notes")] == ["/state/notes/x"]
    assert files.stat("").kind == "directory"


async def test_a_write_that_breaks_off_leaves_what_was_there(files: Files) -> None:
    files.write("x", [b"old"])

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError("the uploader went away")

    with pytest.raises(ConnectionResetError):
        files.write("x", broken())
    assert content(files, "x") == b"old"
    assert [found.path for found in files.list("")] == ["artifacts", "x"]


async def test_byte_order_and_pages_over_a_hostile_tree(files: Files, store: WorkspaceStore) -> None:
    base = store.slot("sbx_a").path / "vol" / "workspace"
    names = [
        b"a",
        b"a-b",
        b"a.d",
        b"a/c",
        b"a/c/d",
        b"a0",
        b"b\n",
        b"b\xff",
        b"\xc3\xa9",
        b" ",
        b"-rf",
        b"'",
        b"zz/deep/x",
    ]
    for name in names:
        path = base / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in (b"a", b"a/c"):
            path.mkdir(exist_ok=True)
        else:
            path.touch()
    expected = sorted({*names, b"artifacts", b"zz", b"zz/deep"})
    for limit in (1, 2, 3, 1000):
        seen: list[bytes] = []
        after = ""
        while page := files.list("", recursive=True, after=after, limit=limit):
            assert len(page) <= limit
            seen += [os.fsencode(found.path) for found in page]
            after = page[-1].path
        assert seen == expected, limit
    assert [os.fsencode(found.path) for found in files.list("a", recursive=True)] == [b"a/c", b"a/c/d"]
    assert os.fsencode(files.list("", after="a0")[0].path) == b"artifacts"
    assert len(files.list("a", after="Z")) == 1, "a cursor before the folder: all of it"
    assert files.list("a", after="zz") == [], "one behind it: nothing"


async def test_wide_and_deep_trees_are_paged_and_removed(files: Files, store: WorkspaceStore) -> None:
    base = store.slot("sbx_a").path / "vol" / "workspace"
    wide = base / "wide"
    wide.mkdir()
    for number in range(5000):
        (wide / f"{number:05}").touch()
    here = os.open(base, os.O_RDONLY)
    for _ in range(10_000):  # deeper than any path can say
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    count, after = 0, ""
    while page := files.list("", recursive=True, after=after, limit=700):
        assert [found.path for found in page] == sorted(found.path for found in page)
        assert page[0].path > after
        count += len(page)
        after = page[-1].path
    assert count > 5000 + 1900
    await store.remove("sbx_a")
    assert not base.exists()
    assert [*store.slot("sbx_a").path.parent.iterdir()] == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("missing", NotFound),
        ("artifacts", Conflict),
        ("file/under", Conflict),
        ("../../spool/x", BadInput),
        ("/etc/passwd", BadInput),
        ("a\0b", BadInput),
        ("x" * 5000, BadInput),
        ("x" * 256, BadInput),
        ("fifo", Conflict),
        ("link-out", NotFound),
        ("link-loop", BadInput),
        ("link-proc/environ", NotFound),
    ],
)
async def test_what_cannot_be_opened_says_why(
    files: Files, store: WorkspaceStore, path: str, kind: type[Exception]
) -> None:
    base = store.slot("sbx_a").path / "vol" / "workspace"
    (base / "file").touch()
    os.mkfifo(base / "fifo")
    (base / "link-out").symlink_to("../../../../../../../etc/passwd")
    (base / "link-loop").symlink_to("link-loop")
    (base / "link-proc").symlink_to("/proc/self")
    with pytest.raises(kind) as caught:
        files.open(path)
    if isinstance(caught.value, BadInput):
        assert caught.value.field == "path" and caught.value.data["limit"]


async def test_links_inside_mean_what_they_mean_to_the_sandbox(files: Files, store: WorkspaceStore) -> None:
    base = store.slot("sbx_a").path / "vol" / "workspace"
    files.write("real/x", [b"1"])
    (base / "relative").symlink_to("real/x")
    (base / "absolute").symlink_to("/workspace/real")
    assert content(files, "relative") == b"1"
    assert content(files, "absolute/x") == b"1"
    found = files.stat("absolute")
    assert (found.kind, found.target) == ("symlink", "/workspace/real")
    assert [entry.path for entry in files.list("absolute")] == ["absolute/x"]
    assert "absolute/x" not in [entry.path for entry in files.list("", recursive=True)], (
        "links are listed, not followed"
    )
    files.write("relative", [b"2"])
    assert not (base / "relative").is_symlink(), "a write replaces a link, it does not write through it"
    assert content(files, "real/x") == b"1"


async def test_a_write_does_not_go_through_a_hard_link(files: Files, store: WorkspaceStore) -> None:
    base = store.slot("sbx_a").path / "vol" / "workspace"
    files.write("one", [b"1"])
    os.link(base / "one", base / "two")
    files.write("two", [b"2"])
    assert content(files, "one") == b"1"


async def test_writes_to_a_folder_are_refused(files: Files) -> None:
    files.write("d/x", [b"1"])
    for path in ("d", "", "/workspace", "/state", "d/x/y"):
        with pytest.raises(Conflict):
            files.write(path, [b"2"])


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(short_dir: Path) -> Iterator[Path]:
    """4 MiB, as a file system of its own."""
    point = short_dir / "disk"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "carrel-test", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.mark.root
async def test_a_full_disk_is_named_and_leaves_nothing_half(small_disk: Path, short_dir: Path) -> None:
    store = DirectoryStore(small_disk / "slots")
    big = seed(short_dir, "big", b"x" * 6_000_000)
    with pytest.raises(DiskFull) as caught:
        await store.prepare("sbx_a", inherit=None, seeds=[big], disk_bytes=0)
    assert caught.value.data["where"] == "workspace"
    assert not await store.holds("sbx_a")
    await store.remove("sbx_a")
    await store.prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)  # and recovers
    files = store.files("sbx_a")
    files.write("x", [b"old"])
    with pytest.raises(DiskFull):
        files.write("x", [b"y" * 1_000_000] * 6)
    assert content(files, "x") == b"old"
    with pytest.raises(DiskFull) as caught:
        await DirectoryBlobs(small_disk / "blobs").put(_chunks([b"z" * 1_000_000] * 6), limit_bytes=1 << 30)
    assert caught.value.data["where"] == "blobs"
    assert [*(small_disk / "blobs").iterdir()] == []


# -- blobs ------------------------------------------------------------------------------------------------------------


async def _chunks(chunks: Sequence[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def test_blobs_by_digest(short_dir: Path) -> None:
    blobs = DirectoryBlobs(short_dir / "blobs")
    for _ in range(2):
        sha256, size = await blobs.put(_chunks([b"ab", b"", b"c"]), limit_bytes=3)
        assert (sha256, size) == (hashlib.sha256(b"abc").hexdigest(), 3)
    assert await blobs.has(sha256) == 3
    assert blobs.path(sha256).read_bytes() == b"abc"
    with pytest.raises(BadInput) as caught:
        await blobs.put(_chunks([b"abcd"]), limit_bytes=3)
    assert caught.value.field == "content"
    assert sorted(path.name for path in (short_dir / "blobs").iterdir()) == [sha256[:2]]


@pytest.mark.parametrize("odd", ["", "../x", "A" * 64, "0" * 63, "0" * 64])
async def test_a_digest_that_is_not_here_or_is_none(short_dir: Path, odd: str) -> None:
    blobs = DirectoryBlobs(short_dir / "blobs")
    assert await blobs.has(odd) is None
    with pytest.raises(NotFound):
        blobs.path(odd)


async def test_blobs_expire_unless_kept_or_young(short_dir: Path) -> None:
    blobs = DirectoryBlobs(short_dir / "blobs")
    kept, _ = await blobs.put(_chunks([b"kept"]), limit_bytes=9)
    old, _ = await blobs.put(_chunks([b"old"]), limit_bytes=9)
    assert await blobs.expire(frozenset({kept}), older_than_s=3600) == 0
    for sha256 in (kept, old):
        os.utime(blobs.path(sha256), (1, 1))
    assert await blobs.expire(frozenset({kept}), older_than_s=3600) == 1
    assert await blobs.has(kept) and await blobs.has(old) is None
    os.utime(blobs.path(kept), (1, 1))
    await blobs.put(_chunks([b"kept"]), limit_bytes=9)  # named again just now
    assert await blobs.expire(frozenset(), older_than_s=3600) == 0


async def test_an_upload_that_breaks_off_leaves_nothing(short_dir: Path) -> None:
    blobs = DirectoryBlobs(short_dir / "blobs")

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await blobs.put(broken(), limit_bytes=99)
    assert [*(short_dir / "blobs").iterdir()] == []
