"""Attacks 47 and 48 of the design's security page, and what else an archive may try: at the port, where every route
ends. The victims lie beside the workspace and in it; nothing of them may change, and a refused archive leaves
nothing."""

from __future__ import annotations

import io
import os
import resource
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from orchestrator.errors import BadInput, CarrelError, TooLarge
from orchestrator.workspace import ArchiveFormat, UnpackLimits
from orchestrator.workspaces.directory import DirectoryStore
from orchestrator.workspaces.paths import VolumeFiles

LIMITS = UnpackLimits(1 << 30, entries=1000)
SECRET = b"the neighbour's\n"


@pytest.fixture
async def vol(short_dir: Path) -> Path:
    slot = await DirectoryStore(short_dir / "slots").prepare("sbx_a", inherit=None, seeds=[], disk_bytes=0)
    (short_dir / "secret").write_bytes(SECRET)
    (slot.path / "spool" / "secret").write_bytes(SECRET)
    (slot.path / "vol" / "workspace" / "victim").write_bytes(SECRET)
    return slot.path / "vol"


def everything(vol: Path) -> dict[str, bytes]:
    """Every path around the workspace, with the content of files."""
    base = vol.parent.parent.parent
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(base.rglob("*"))}


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(content), 0o6777
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


END = bytes(1024)

HOSTILE = {
    "absolute": member("/etc/evil", content=b"x"),
    "up": member("../../spool/secret", content=b"x"),
    "up inside": member("a/../../victim", content=b"x"),
    "link out absolute": member("l", tarfile.SYMTYPE, "/etc/passwd"),
    "link up": member("l", tarfile.SYMTYPE, "../victim"),
    "link up by a detour": member("a/b/u", tarfile.SYMTYPE, ".") + member("m", tarfile.SYMTYPE, "a/b/u/../../.."),
    "through its own link": member("d", tarfile.DIRTYPE)
    + member("l", tarfile.SYMTYPE, "d")
    + member("l/x", content=b"x"),
    "hard link out": member("h", tarfile.LNKTYPE, "../victim"),
    "hard link absolute": member("h", tarfile.LNKTYPE, "/etc/passwd"),
    "hard link to nothing": member("h", tarfile.LNKTYPE, "victim"),
    "hard link through a link": member("l", tarfile.SYMTYPE, ".") + member("h", tarfile.LNKTYPE, "l/x"),
    "device": member("null", tarfile.CHRTYPE),
    "block device": member("sda", tarfile.BLKTYPE),
    "fifo": member("f", tarfile.FIFOTYPE),
    "sparse": member("s", tarfile.GNUTYPE_SPARSE),
    "unknown kind": member("u", b"Q"),
    "a file and a folder": member("x/y", content=b"y") + member("x", content=b"x"),
    "below a file": member("x", content=b"x") + member("x/y", content=b"y"),
    "long": member("/".join(["n" * 200] * 20), content=b"x"),
    "deep": member("d/" * 300 + "f", content=b"x"),
    "a huge header": member("././@LongLink", tarfile.GNUTYPE_LONGNAME, content=b"n" * (2 << 20)),
    "bad pax": member("p", tarfile.XHDTYPE, content=b"999 path=x\n") + member("y"),
    "an absurd size": member("p", tarfile.XHDTYPE, content=b"5010 size=" + b"9" * 4999 + b"\n") + member("y"),
    "a size below zero": member("p", tarfile.XHDTYPE, content=b"11 size=-5\n") + member("y"),
    "cut": member("x", content=b"x" * 5000)[:2000],
    "no archive": b"PK\3\4 something else altogether" * 100,
    "empty": b"",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_47_a_hostile_tar_changes_nothing(vol: Path, what: str) -> None:
    files = VolumeFiles(vol)
    before = everything(vol)
    packed = member("first", content=b"fine") + HOSTILE[what]
    data = HOSTILE[what] if what in {"no archive", "empty"} else packed if what == "cut" else packed + END
    for target in ("new/folder", ""):
        with pytest.raises(BadInput) as caught:
            files.unpack(target, iter([data]), "tar", LIMITS)
        assert caught.value.field == "archive" and caught.value.data["limit"] and caught.value.data["remedy"]
        with pytest.raises(BadInput):
            files.unpack(target, iter([zstandard.compress(data)]), "tar.zst", LIMITS)
    assert everything(vol) == before


def test_47_what_is_taken_has_no_rights_of_its_own(vol: Path) -> None:
    files = VolumeFiles(vol)
    data = (
        member("tool", content=b"x") + member("d", tarfile.DIRTYPE) + member("d/in", tarfile.SYMTYPE, "../tool")
        + member("hard", tarfile.LNKTYPE, "tool") + member("new\nline\x1b[31m", content=b"y") + END
    )  # fmt: skip
    done = files.unpack("t", iter([data[at : at + 100] for at in range(0, len(data), 100)]), "tar", LIMITS)
    assert (done.files, done.directories, done.links) == (2, 1, 2)
    base = vol / "workspace" / "t"
    for path in (base, base / "tool", base / "d"):
        found = path.lstat()
        assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
        assert os.geteuid() != 0 or (found.st_uid, found.st_gid) == (1000, 1000), path
    assert (base / "tool").samefile(base / "hard")
    assert [path for path in vol.iterdir() if path.name.startswith(".")] == []


def zipped(*entries: tuple[str, int, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, mode, content in entries:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr, info.compress_type = 3, mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return made.getvalue()


HOSTILE_ZIPS: dict[str, Callable[[], bytes]] = {
    "absolute": lambda: zipped(("/etc/evil", 0o100644, b"x")),
    "up": lambda: zipped(("../victim", 0o100644, b"x")),
    "link out": lambda: zipped(("l", 0o120777, b"/etc/passwd")),
    "through its link": lambda: zipped(("l", 0o120777, b"."), ("l/x", 0o100644, b"x")),
    "device": lambda: zipped(("d", 0o020666, b"")),
    "long link": lambda: zipped(("l", 0o120777, b"x" * 100_000)),
    "cut": lambda: zipped(("x", 0o100644, os.urandom(5000)))[:3000],
    "checksum": lambda: zipped(("x", 0o100644, b"abc")).replace(struct.pack("<L", 0x352441C2), b"\0\0\0\0"),
    "directory elsewhere": lambda: zipped(("x", 0o100644, b"x"))[:-6] + b"\xff\xff\xff\x7f\0\0",
    "many claimed": lambda: b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 60000, 60000, 9, 0, 0),
}


@pytest.mark.parametrize("what", HOSTILE_ZIPS)
def test_47_a_hostile_zip_changes_nothing(vol: Path, what: str) -> None:
    before = everything(vol)
    with pytest.raises(BadInput):
        VolumeFiles(vol).unpack("new", iter([HOSTILE_ZIPS[what]()]), "zip", LIMITS)
    assert everything(vol) == before


def zeros(format: ArchiveFormat, size_bytes: int) -> bytes:
    """A bomb: as many zeros as that, in an archive of a few KiB."""
    if format == "zip":
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb", "w") as out:
            for _ in range(size_bytes >> 20):
                out.write(bytes(1 << 20))
        return made.getvalue()
    info = tarfile.TarInfo("bomb")
    info.size = size_bytes
    packing = zstandard.ZstdCompressor(level=19).compressobj()
    pieces = [packing.compress(info.tobuf())]
    pieces += [packing.compress(bytes(1 << 20)) for _ in range(size_bytes >> 20)]
    return b"".join([*pieces, packing.compress(END), packing.flush()])


@pytest.mark.parametrize("format", ["tar.zst", "zip"])
def test_48_bombs_are_defused_with_the_figures(vol: Path, format: ArchiveFormat) -> None:
    bomb = zeros(format, 512 << 20)
    assert len(bomb) < 1 << 20
    before = everything(vol)
    rss_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooLarge) as caught:
        VolumeFiles(vol).unpack("new", iter([bomb]), format, LIMITS)
    data = caught.value.data
    assert data["received_bytes"] <= len(bomb) and 64 << 20 < data["unpacked_bytes"] < 260 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - rss_kib < 64 << 10
    assert everything(vol) == before
    with pytest.raises(TooLarge):
        VolumeFiles(vol).unpack("new", iter([bomb]), format, UnpackLimits(1 << 20))


def test_48_too_many_entries_and_too_wide_a_window(vol: Path) -> None:
    files = VolumeFiles(vol)
    many = b"".join(member(f"f{at}") for at in range(1001)) + END
    with pytest.raises(TooLarge) as caught:
        files.unpack("", iter([many]), "tar", LIMITS)
    assert caught.value.data["entries"] == 1001
    folders = b"".join(member(f"{at}/" + "d/" * 100 + "f") for at in range(20)) + END
    with pytest.raises(TooLarge):
        files.unpack("", iter([folders]), "tar", LIMITS)
    wide = zstandard.ZstdCompressionParameters(window_log=27)
    frame = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    data = frame.compress(os.urandom(1 << 20)) + frame.flush()
    with pytest.raises(BadInput):
        files.unpack("", iter([data]), "tar.zst", LIMITS)


def test_an_upload_that_breaks_off_leaves_nothing(vol: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield member("x", content=b"x" * 5000)[:3000]
        raise BadInput("the body ended early", field="body", limit="", remedy="")

    before = everything(vol)
    for format in ("tar", "tar.zst", "zip"):
        with pytest.raises(CarrelError):
            VolumeFiles(vol).unpack("new", broken(), format, LIMITS)
    assert everything(vol) == before


@pytest.mark.root
def test_a_malicious_workspace_goes_out_as_far_as_it_is_files(vol: Path) -> None:
    base = vol / "workspace"
    os.mkfifo(base / "fifo")
    os.mknod(base / "zero", 0o20666, os.makedev(1, 5))
    (base / "loop").symlink_to("loop")
    (base / "out").symlink_to("/etc/passwd")
    (base / "huge").touch()
    os.truncate(base / "huge", 1 << 40)
    (base / "a\nb\x1b[31m").write_bytes(b"odd")
    Path(os.fsdecode(os.fsencode(base) + b"/caf\xe9")).write_bytes(b"latin")
    data = b"".join(VolumeFiles(vol).archive("", "tar"))
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        names = {info.name: info for info in archive}
        note = archive.extractfile(".carrel-left-out.txt")
        assert note is not None
        text = note.read().decode()
    assert {"victim", "loop", "out", "a\nb\x1b[31m", "caf\udce9"} <= set(names)
    assert not {"fifo", "zero", "huge"} & set(names)
    assert all(name in text for name in ("fifo", "zero", "huge")) and len(data) < 1 << 20
