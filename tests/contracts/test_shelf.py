"""The port Shelf: each sentence of its docstring, on real workspaces somebody hostile filled."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import pytest

from orchestrator.errors import Conflict, NotFound
from orchestrator.room import Mark
from orchestrator.shelf import MOST, Kept
from orchestrator.workspace import Files
from orchestrator.workspaces.directory import DirectoryStore
from orchestrator.workspaces.shelf import DirectoryShelf

pytestmark = pytest.mark.root
A, B = "exe_a", "exe_b"


@pytest.fixture
def shelf(short_dir: Path) -> DirectoryShelf:
    return DirectoryShelf(short_dir / "shelf")


async def workspace(folder: Path, sandbox_id: str = "sbx_a") -> tuple[Files, Path]:
    store = DirectoryStore(folder / "slots")
    slot = await store.prepare(sandbox_id, inherit=None, seeds=(), disk_bytes=0)
    return store.files(sandbox_id), slot.path / "vol" / "workspace"


def held(folder: Path) -> int:
    """Bytes of all regular files on the shelf, each once."""
    found = {f.stat().st_ino: f.stat().st_blocks * 512 for f in (folder / "shelf").rglob("*") if f.is_file()}
    return sum(found.values())


async def content(shelf: DirectoryShelf, execution_id: str, one: Kept) -> bytes:
    file = await shelf.open(execution_id, one)
    try:
        assert file.etag == one.sha256
        return file.read(0, one.size_bytes + 1)
    finally:
        file.close()


async def test_what_was_left_outlives_its_workspace(shelf: DirectoryShelf, short_dir: Path) -> None:
    files, home = await workspace(short_dir)
    (home / "artifacts" / "deep").mkdir()
    (home / "artifacts" / "deep" / "b").write_bytes(b"beta")
    (home / "artifacts" / os.fsdecode(b"a\xff\n")).write_bytes(b"")
    (home / "elsewhere").write_bytes(b"named")
    await shelf.name(A, ["/workspace/elsewhere", "/workspace/artifacts/deep/b"])
    answer = await shelf.keep(A, files)
    await DirectoryStore(short_dir / "slots").remove("sbx_a")
    again = DirectoryShelf(short_dir / "shelf")  # another process
    assert await again.kept(A) == answer
    assert [(one.path, one.sha256) for one in answer] == [
        ("elsewhere", hashlib.sha256(b"named").hexdigest()),
        ("deep/b", hashlib.sha256(b"beta").hexdigest()),
        (os.fsdecode(b"a\xff\n"), hashlib.sha256(b"").hexdigest()),
    ]
    assert [await content(again, A, one) for one in answer] == [b"named", b"beta", b""]
    assert [id for id, _ in await again.list()] == [A]


async def test_nothing_left_is_nothing_held(shelf: DirectoryShelf, short_dir: Path) -> None:
    files, home = await workspace(short_dir)
    assert await shelf.keep(A, files) == ()
    with pytest.raises(NotFound):
        await shelf.kept(A)
    (home / "artifacts" / "a").write_bytes(b"a")
    await shelf.keep(A, files)
    (home / "artifacts" / "a").unlink()
    assert await shelf.keep(A, files) == ()  # in place of what was kept
    assert await shelf.list() == [] and held(short_dir) == 0


async def test_what_nobody_can_have_is_refused_by_name(shelf: DirectoryShelf, short_dir: Path) -> None:
    files, home = await workspace(short_dir)
    (short_dir / "secret").write_text("secret")
    folder = home / "artifacts"
    (folder / "fine").write_bytes(b"fine")
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "device", 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
    (folder / "inside").symlink_to("/workspace/artifacts/fine")
    (folder / "out").symlink_to(short_dir / "secret")
    (folder / "passwd").symlink_to("/etc/passwd")
    (folder / "self").symlink_to("self")
    with (folder / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)
    said = ["../../etc/passwd", "/etc/passwd", "/state/home", "/workspace/../state/home", "gone", "a\0b", "artifacts"]
    await shelf.name(A, said)
    answer = {one.path: one for one in await shelf.keep(A, files)}
    assert {path for path, one in answer.items() if not one.refused} == {"fine", "inside"}
    assert await content(shelf, A, answer["inside"]) == b"fine"
    assert set(answer) >= {"fifo", "device", "out", "passwd", "self", "sparse", "gone"}
    for one in answer.values():
        if one.refused:
            assert one.sha256 == ""
            with pytest.raises(NotFound):
                await shelf.open(A, one)
    assert "1099511627776 bytes" in answer["sparse"].refused
    assert held(short_dir) < 64 * 1024
    assert not any(b"secret" in f.read_bytes() for f in (short_dir / "shelf").rglob("*") if f.is_file())


async def test_holes_stay_holes(shelf: DirectoryShelf, short_dir: Path) -> None:
    files, home = await workspace(short_dir)
    with (home / "artifacts" / "sparse").open("wb") as sparse:
        sparse.seek(128 << 20)
        sparse.write(b"end")
    (one,) = await shelf.keep(A, files)
    file = await shelf.open(A, one)
    assert (one.size_bytes, file.read(128 << 20, 10)) == ((128 << 20) + 3, b"end")
    file.close()
    assert held(short_dir) < 4 << 20


async def test_exchanged_while_copied_what_is_kept_is_of_one_file(shelf: DirectoryShelf, short_dir: Path) -> None:
    files, home = await workspace(short_dir)
    (short_dir / "secret").write_bytes(b"s" * 3_000_000)
    path = home / "artifacts" / "a"
    over = threading.Event()

    def exchange() -> None:
        while not over.is_set():
            for fill in (b"x" * 3_000_000, b"y" * 2_999_999):
                (home / "new").write_bytes(fill)
                (home / "new").rename(path)
            (home / "new").symlink_to(short_dir / "secret")
            (home / "new").rename(path)
            with path.with_name("b").open("r+b" if path.with_name("b").exists() else "w+b") as other:
                other.truncate(1_000_000)
                other.truncate(2_000_000)

    racing = threading.Thread(target=exchange)
    racing.start()
    try:
        for _ in range(6):
            for one in await shelf.keep(A, files):
                if one.sha256:
                    got = await content(shelf, A, one)
                    assert hashlib.sha256(got).hexdigest() == one.sha256 and len(got) == one.size_bytes
                    assert len(set(got)) <= 1 and set(got) <= {ord("x"), ord("y"), 0}
                else:
                    assert one.refused
    finally:
        over.set()
        racing.join()


async def test_so_many_and_so_much(short_dir: Path) -> None:
    shelf = DirectoryShelf(short_dir / "shelf", execution_limit_bytes=10_000, limit_bytes=1 << 20)
    files, home = await workspace(short_dir)
    for n in range(MOST + 100):
        (home / "artifacts" / f"{n:05}").touch()
    answer = await shelf.keep(A, files)
    assert [one.path for one in answer if one.sha256] == [f"{n:05}" for n in range(MOST)]
    assert "there are more" in answer[-1].refused
    for file in (home / "artifacts").iterdir():
        file.unlink()
    for n in range(3):
        (home / "artifacts" / str(n)).write_bytes(bytes([n]) * 4000)
    assert [bool(one.sha256) for one in await shelf.keep(A, files)] == [True, True, False]
    low = DirectoryShelf(short_dir / "shelf", low=Mark(1 << 60))
    assert all("room for 0" in one.refused for one in await low.keep("exe_low", files))
    full = DirectoryShelf(short_dir / "shelf", limit_bytes=8192)
    (home / "artifacts" / "3").write_bytes(b"3" * 4096)
    assert [one.refused for one in await full.keep(B, files)][-1]
    assert await DirectoryShelf(short_dir / "shelf").kept(A)


async def test_shared_bytes_are_there_once_and_stay_for_the_other(shelf: DirectoryShelf, short_dir: Path) -> None:
    files, home = await workspace(short_dir)
    (home / "artifacts" / "one").write_bytes(b"1" * 100_000)
    (home / "artifacts" / "same").write_bytes(b"1" * 100_000)
    await shelf.keep(A, files)
    alone = held(short_dir)
    (one, _) = await shelf.keep(B, files)
    assert held(short_dir) < alone + 20_000
    assert await shelf.remove(A) < 20_000
    assert await content(shelf, B, one) == b"1" * 100_000
    assert await shelf.remove(B) >= 100_000
    assert await shelf.remove(B) == 0
    assert held(short_dir) == 0 and await shelf.list() == []


async def test_damage_is_told_by_name(shelf: DirectoryShelf, short_dir: Path) -> None:
    files, home = await workspace(short_dir)
    (home / "artifacts" / "a").write_bytes(b"alpha")
    (one,) = await shelf.keep(A, files)
    assert await content(shelf, A, one) == b"alpha"
    kept = short_dir / "shelf" / "of" / A / one.sha256
    kept.write_bytes(b"omega")
    with pytest.raises(Conflict, match="a is not any more"):
        await shelf.open(A, one)
    (fresh,) = await shelf.keep(B, files)  # nobody shares what is damaged
    assert await content(shelf, B, fresh) == b"alpha"
    (kept.parent / "list").write_bytes(
        (kept.parent / "list").read_bytes().replace(b'"size_bytes": 5', b'"size_bytes": 6')
    )
    with pytest.raises(Conflict, match="damaged"):
        await shelf.kept(A)


async def test_names_are_remembered_once_and_bounded(shelf: DirectoryShelf, short_dir: Path) -> None:
    await shelf.name(A, ["x", "x", "y" * 5000, ""])
    await shelf.name(A, ["x", "z\n"])
    with (short_dir / "shelf" / "named" / A).open("ab") as file:
        file.write(b"\nhalf a li!")  # of a crash
    await shelf.name(A, ["after"])
    assert await shelf.named(A) == ["x", "z\n", "after"]
    await shelf.name(A, [str(n) for n in range(MOST * 2)])
    assert len(await shelf.named(A)) == MOST
    assert [id for id, _ in await shelf.list()] == [A]
    await shelf.remove(A)
    assert await shelf.named(A) == [] and await shelf.list() == []


async def test_two_owners_at_once(shelf: DirectoryShelf, short_dir: Path) -> None:
    files, home = await workspace(short_dir)
    for n in range(20):
        (home / "artifacts" / str(n)).write_bytes(os.urandom(5000))
    other = DirectoryShelf(short_dir / "shelf")
    answers = await asyncio.gather(*(one.keep(id, files) for one in (shelf, other) for id in (A, A, B)))
    assert all(answer == answers[0] for answer in answers)
    assert await shelf.kept(A) == answers[0] == await shelf.kept(B)
    assert [id for id, _ in await shelf.list()] == [A, B]
    await asyncio.gather(shelf.remove(A), other.remove(B), other.remove(A))
    assert held(short_dir) == 0


_WATCHED = {"os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "open"}


def _die_at(folder: Path, what: str, left: int) -> None:
    """In a process of its own: keep or remove, killed at the step of that number."""

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if event in _WATCHED and (event != "open" or "shelf" in str(args[0])):
            left -= 1
            if left == 0:
                os._exit(137)

    async def do() -> None:
        shelf = DirectoryShelf(folder / "shelf")
        if what == "remove":
            await shelf.remove(A)
        else:
            await shelf.keep(A, DirectoryStore(folder / "slots").files("sbx_a"))

    sys.addaudithook(count)
    asyncio.run(do())


@pytest.mark.parametrize("what", ["keep", "keep again", "remove"])
async def test_killed_between_any_two_steps(short_dir: Path, what: str) -> None:
    """All of it or nothing is there, what it shared with another stays, and doing it again comes out as if once."""
    files, home = await workspace(short_dir)
    (home / "artifacts" / "mine").write_bytes(b"m" * 9000)
    (home / "artifacts" / "shared").write_bytes(b"s" * 9000)
    shelf = DirectoryShelf(short_dir / "shelf")
    others = await shelf.keep(B, files)
    whole = others
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    for left in range(1, 1000):
        if what != "keep":
            await shelf.keep(A, files)
        dying = processes.Process(target=_die_at, args=(short_dir, what, left))
        dying.start()
        await asyncio.to_thread(dying.join)
        assert dying.exitcode in (0, 137)
        try:
            there = await shelf.kept(A)
        except NotFound:
            there = ()
        assert there in (whole, ())
        for one in there:
            await content(shelf, A, one)
        for one in others:
            await content(DirectoryShelf(short_dir / "shelf"), B, one)
        await shelf.list()
        assert not list((short_dir / "shelf" / "of").glob(".*"))
        assert await shelf.keep(A, files) == whole
        await shelf.remove(A)
        assert {f.name for f in (short_dir / "shelf" / "content").glob("??/*")} == {one.sha256 for one in others}
        if dying.exitcode == 0:
            assert left > 5
            return
    raise AssertionError("it never came to its end")


async def test_what_is_packed_stays_as_it_was_and_is_loaded_in_place(shelf: DirectoryShelf, short_dir: Path) -> None:
    files, home = await workspace(short_dir)
    left = home / "artifacts"
    (left / "large").write_bytes(os.urandom(3 << 20) + b"end")
    (left / "empty").touch()
    await shelf.name(A, ["/workspace/nowhere"])
    first = await shelf.keep(A, files)
    for change in ("replaced", "removed"):
        packing = shelf.pack(A)
        pieces = [next(packing)]
        if change == "replaced":
            (left / "large").write_bytes(b"another")
            assert await shelf.keep(A, files) != first
        else:
            await shelf.remove(A)
        pieces += packing
        assert max(len(data) for _, data in pieces) == 1 << 20
        other = DirectoryShelf(short_dir / change)
        await other.load(A, iter([(name, data) for name, data in pieces if name != "named"]))
        await other.load(A, iter(pieces))  # in place of that
        assert await other.kept(A) == first and list(await other.named(A)) == ["/workspace/nowhere"]
        for one in first:
            if not one.refused:
                assert hashlib.sha256(await content(other, A, one)).hexdigest() == one.sha256
        assert await other.remove(A) > 3 << 20
        assert [path for path in (short_dir / change).rglob("*") if path.is_file()] == []
        if change == "replaced":
            await shelf.load(A, iter(pieces))
    assert held(short_dir) == 0, "what was held for the pack is let go"
    with pytest.raises(NotFound):
        next(shelf.pack(A))


async def test_what_was_damaged_is_loaded_as_that_and_what_is_none_is_refused(
    shelf: DirectoryShelf, short_dir: Path
) -> None:
    files, home = await workspace(short_dir)
    (home / "artifacts" / "a").write_bytes(b"alpha")
    (one,) = await shelf.keep(A, files)
    pieces = list(shelf.pack(A))
    other = DirectoryShelf(short_dir / "other")
    for wrong in ("../a", ".new-x", "a" * 63):
        with pytest.raises(Conflict):
            await other.load(A, iter([*pieces, (wrong, b"")]))
        assert await other.list() == []
    await other.load(A, iter([(name, b"flipped" if name == one.sha256 else data) for name, data in pieces]))
    with pytest.raises(Conflict):
        await content(other, A, one)
    await other.load(B, iter(pieces))
    assert await content(other, B, one) == b"alpha", "nobody shares what is damaged"
