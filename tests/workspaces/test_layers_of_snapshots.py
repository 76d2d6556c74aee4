"""Layers: what was packed comes out again, whatever it was called and however it was linked; in bounded memory."""

from __future__ import annotations

import os
import random
import socket
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import BadInput, TooLarge
from orchestrator.workspace import UnpackLimits
from orchestrator.workspaces.laying import lay
from orchestrator.workspaces.measuring import digest
from orchestrator.workspaces.packing import Packed
from orchestrator.workspaces.removal import remove_tree
from tests.inputs import how_many


def laid(top: Path, *layers: Iterable[bytes], limits: UnpackLimits | None = None) -> Path:
    top.mkdir()
    lay(top, layers, limits)
    return top


def shape(top: Path) -> dict[str, tuple[object, ...]]:
    """All that a layer keeps, by path: for what the digest leaves out."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for folder, folders, files in os.walk(top):
        for path in sorted(Path(folder, name) for name in folders + files):
            one, name = path.lstat(), os.fspath(path.relative_to(top))
            if stat.S_ISFIFO(one.st_mode) or stat.S_ISSOCK(one.st_mode):
                continue
            says: tuple[object, ...] = (one.st_mode, one.st_mtime_ns)
            if stat.S_ISLNK(one.st_mode):
                says += (path.readlink(),)
            elif stat.S_ISREG(one.st_mode):
                attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
                content = path.read_bytes() if one.st_size < 1 << 20 else b"the digest has it"
                says += (content, inodes.setdefault(one.st_ino, name), tuple(sorted(attributes.items())))
            found[name] = says
    return found


def a_zoo(top: Path) -> None:
    """Everything a program inside may leave."""
    odd = os.fsdecode(b"\xff\xfe")
    for folder in ("workspace", "state", "workspace/a\nb", f"workspace/{odd}", "workspace/ "):
        (top / folder).mkdir()
    deep = Path(top, "workspace", *["d" * 200] * 12)
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("deep")
    (top / "workspace" / ".wh.x").write_text("no whiteout")
    (top / "workspace" / odd / os.fsdecode(b"\xe4")).write_bytes(b"latin")
    (top / "workspace" / "setuid").write_bytes(b"#!")
    (top / "workspace" / "setuid").chmod(0o6755)
    (top / "workspace" / "sticky").mkdir()
    (top / "workspace" / "sticky").chmod(0o1777)
    (top / "workspace" / "shut").mkdir()
    (top / "workspace" / "shut" / "in").write_text("shut in")
    os.utime(top / "workspace" / "shut" / "in", ns=(0, -5_250_000_001))
    (top / "workspace" / "shut").chmod(0o000)
    (top / "state" / "one").write_bytes(os.urandom(70_000))
    (top / "state" / "lone").write_bytes(os.urandom(70_000))
    os.link(top / "state" / "one", top / "workspace" / "two")
    os.link(top / "state" / "one", top / "workspace" / "a\nb" / "three")
    (top / "workspace" / "out").symlink_to("/etc/passwd")
    (top / "workspace" / "odd").symlink_to(odd * 150)
    with (top / "workspace" / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        for at in (1 << 20, 1 << 30, (1 << 40) - 5):
            file.seek(at)
            file.write(b"here\n")
    with (top / "workspace" / "hole").open("wb") as file:
        file.truncate(1 << 34)
    os.setxattr(top / "workspace" / "two", "user.note", b"\0\xff=\n")
    os.mkfifo(top / "workspace" / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.fspath(top / "workspace" / "socket"))


def change(top: Path) -> None:
    """Something of every kind."""
    work = top / "workspace"
    (work / ".wh.x").unlink()
    (work / "setuid").chmod(0o755)
    (work / "new").mkdir()
    (work / "new" / "file").write_text("new")
    (work / "two").unlink()
    (work / "out").unlink()
    (work / "out").mkdir()
    (work / "out" / "in").write_text("a link became a folder")
    remove_tree(work / "sticky")
    (work / "sticky").symlink_to("in")
    before = (work / "hole").stat()
    with (work / "hole").open("r+b") as file:  # not told by size nor time of change
        file.seek(77)
        file.write(b"x")
    os.utime(work / "hole", ns=(before.st_atime_ns, before.st_mtime_ns))
    remove_tree(work / "a\nb")


def test_a_zoo_survives_whole_and_in_layers(short_dir: Path) -> None:
    first, second = short_dir / "1", short_dir / "2"
    first.mkdir()
    a_zoo(first)
    whole = Packed(first)
    packed = b"".join(whole)
    assert len(packed) < 1 << 20  # a terabyte of nothing is nothing
    assert [line.split(": ")[1] for line in whole.left_out] == ["device, socket or FIFO"] * 2
    back = laid(short_dir / "back", [packed])
    sparse = back / "workspace" / "sparse"
    assert sparse.stat().st_blocks * 512 < 1 << 20 and sparse.stat().st_size == 1 << 40
    assert digest(back) == digest(first)
    subprocess.run(["cp", "-a", "--sparse=always", first, second], check=True)
    change(second)
    difference = b"".join(Packed(second, first))
    assert len(difference) < len(packed) - 70_000
    both = laid(short_dir / "both", [packed], [difference])
    assert digest(both) == digest(second)
    small = ("sparse", "hole", "fifo", "socket")
    for tree in (first, back, second, both):
        for name in small:
            (tree / "workspace" / name).unlink(missing_ok=True)
    os.utime(second / "workspace", ns=(0, 0))
    for tree in (back, both, first):
        os.utime(tree / "workspace", ns=(0, 0))
    assert shape(back) == shape(first)
    assert shape(both) == shape(second)


def test_any_tar_reads_it(short_dir: Path) -> None:
    top, out = short_dir / "1", short_dir / "out"
    top.mkdir()
    out.mkdir()
    a_zoo(top)
    (top / "workspace" / "sparse").unlink()  # as a file of its own it would be a terabyte for Python's
    (short_dir / "a.tar.zst").write_bytes(b"".join(Packed(top)))
    subprocess.run(["tar", "-xpf", short_dir / "a.tar.zst", "-C", out], check=True)
    assert digest(out) == digest(top)
    plain = zstandard.ZstdDecompressor().decompressobj().decompress((short_dir / "a.tar.zst").read_bytes())
    (short_dir / "a.tar").write_bytes(plain)
    with tarfile.open(short_dir / "a.tar") as archive:
        names = archive.getnames()
        assert "workspace/two" in names and "workspace/a\nb" in names
        assert archive.getmember("workspace/hole").size == 1 << 34


def test_what_others_packed_is_read(short_dir: Path) -> None:
    top = short_dir / "1"
    top.mkdir()
    a_zoo(top)
    for name in ("fifo", "socket"):
        (top / "workspace" / name).unlink()
    for format in ("gnu", "posix"):
        archive = subprocess.run(
            ["tar", "--zstd", f"--format={format}", "-cf", "-", "--exclude=sparse", "--exclude=hole", "-C", top, "."],
            check=True,
            capture_output=True,
        )
        back = laid(short_dir / format, [archive.stdout])
        for tree in (top, back):
            for name in ("sparse", "hole"):
                (tree / "workspace" / name).unlink(missing_ok=True)
        assert digest(back) == digest(top)


def a_name(chance: random.Random) -> str:
    name = chance.choice([b"a", b"\n", b"\xff", b".wh.", b" ", b"-", "é".encode(), b"x" * 90])
    return os.fsdecode(name * chance.randrange(1, 3) + b"%d" % chance.randrange(99))


def a_tree(chance: random.Random, deep: int = 0) -> object:
    """Files as bytes, links and holes as tuples, folders as dicts."""
    match chance.randrange(6):
        case 0 | 1 if deep < 5:
            return {a_name(chance): a_tree(chance, deep + 1) for _ in range(chance.randrange(5))}
        case 2:
            return ("link", chance.choice(["/etc/passwd", "..", "\n", os.fsdecode(b"\xfe") * 200]))
        case 3:
            return ("hole", chance.randrange(1, 1 << 36))
        case _:
            return chance.randbytes(chance.choice([0, 1, 511, 512, 513, 5000]))


def planted(top: Path, tree: object) -> None:
    """As hypothesis says, and each third file has a second name."""
    if isinstance(tree, dict):
        top.mkdir()
        for name, one in tree.items():
            planted(top / name, one)
    elif isinstance(tree, bytes):
        top.write_bytes(tree)
        if len(tree) % 3 == 1:
            os.link(top, top.parent / f"{top.name[:200]}~")
    elif isinstance(tree, tuple) and tree[0] == "link":
        top.symlink_to(tree[1])
    elif isinstance(tree, tuple):
        with top.open("wb") as file:
            file.seek(tree[1])
            file.write(b"end")


@given(st.integers())
@settings(max_examples=how_many(40), deadline=None)
def test_any_tree_comes_out_as_it_went_in(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    here, chance = tmp_path_factory.mktemp("t"), random.Random(seed)
    try:
        one = {a_name(chance): a_tree(chance) for _ in range(4)}
        other = {a_name(chance): a_tree(chance) for _ in range(4)}
        planted(here / "1", one)
        planted(here / "2", {**other, **{name: one[name] for name in chance.sample(sorted(one), len(one) // 2)}})
        whole = laid(here / "whole", Packed(here / "1"))
        assert digest(whole) == digest(here / "1")
        both = laid(here / "both", Packed(here / "1"), Packed(here / "2", here / "1"))
        assert digest(both) == digest(here / "2")
        assert shape(both).keys() == shape(here / "2").keys()
    finally:
        remove_tree(here)


MEASURED = """
import resource, sys
from pathlib import Path
from orchestrator.workspaces.laying import lay
from orchestrator.workspaces.packing import Packed
here = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(here / "back").mkdir()
lay(here / "back", [Packed(here / "tree"), Packed(here / "tree", here / "back")])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("wide", "deep", "mib"), [(3000, 300, 80), pytest.param(100_000, 3000, 2048, marks=pytest.mark.full)]
)
def test_memory_is_bounded(short_dir: Path, wide: int, deep: int, mib: int) -> None:
    tree = short_dir / "tree"
    tree.mkdir()
    block = os.urandom(1 << 20)
    with (tree / "large").open("wb") as file:
        for _ in range(mib):
            file.write(block)
    (tree / "wide").mkdir()
    for number in range(wide):
        (tree / "wide" / f"{number}").touch()
    for number in range(wide // 10):
        os.link(tree / "wide" / f"{number}", tree / "wide" / f"{number} again")
    here = os.open(tree, os.O_RDONLY)
    for _ in range(deep):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    done = subprocess.run([sys.executable, "-c", MEASURED, str(short_dir)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 * 1024
    assert digest(short_dir / "back") == digest(tree)
    assert remove_tree(short_dir / "back") and remove_tree(tree)


def entry(name: bytes, kind: bytes = b"0", *, linkname: bytes = b"", content: bytes = b"", **pax: str) -> bytes:
    info = tarfile.TarInfo(os.fsdecode(name))
    info.type, info.linkname, info.size = kind, os.fsdecode(linkname), len(content)
    info.pax_headers = {key.replace("__", "."): value for key, value in pax.items()}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)


HOSTILE = {
    "absolute": entry(b"/etc/x", content=b"x"),
    "up": entry(b"workspace/../../x", content=b"x"),
    "through a link": entry(b"d", b"2", linkname=b"/tmp") + entry(b"d/x", content=b"x"),
    "link to a link": entry(b"l", b"2", linkname=b"/etc/passwd") + entry(b"h", b"1", linkname=b"l"),
    "link out": entry(b"h", b"1", linkname=b"../../etc/passwd"),
    "link to nothing": entry(b"h", b"1", linkname=b"never"),
    "device": entry(b"dev", b"3"),
    "FIFO": entry(b"fifo", b"6"),
    "long name": entry(b"n" * 256, content=b"x"),
    "no map": entry(b"s", content=b"no number\n" * 60, GNU__sparse__major="1", GNU__sparse__realsize="5"),
    "map beyond": entry(
        b"s", content=b"1\n5\n9\n".ljust(512, b"\0"), GNU__sparse__major="1", GNU__sparse__realsize="5"
    ),
    "cut": entry(b"x", content=b"y" * 5000)[:-2000],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_leads_out_or_is_none_is_refused(short_dir: Path, what: str) -> None:
    (short_dir / "neighbour").write_text("untouched")
    packed = zstandard.compress(HOSTILE[what] + bytes(1024) * (what != "cut"))
    top = short_dir / "top"
    top.mkdir()
    if what == "through a link":  # the later one counts, and is a folder of our own
        lay(top, [[packed]])
        assert (top / "d" / "x").read_bytes() == b"x" and not (top / "d").is_symlink()
    else:
        with pytest.raises(BadInput) as caught:
            lay(top, [[packed]], UnpackLimits(1 << 20))
        assert caught.value.field == "archive" and caught.value.data["limit"]
    assert sorted(path.name for path in short_dir.iterdir()) == ["neighbour", "top"]
    assert not Path("/tmp/x").exists()


def test_a_bomb_is_cut_off(short_dir: Path) -> None:
    packed = zstandard.compress(entry(b"x", content=bytes(200 << 20)) + bytes(1024))
    (short_dir / "top").mkdir()
    with pytest.raises(TooLarge):
        lay(short_dir / "top", [[packed]], UnpackLimits(1 << 40))
    assert (short_dir / "top" / "x").stat().st_size < 100 << 20
