"""A backup's file: whole it reads as it was written; cut off, changed or put together otherwise it is refused."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.backup import Contents, Head, Output, verified
from orchestrator.backup.format import MANIFEST, SHA256
from orchestrator.backup.reading import Reader
from orchestrator.backup.writing import Writer
from orchestrator.errors import BadInput, DiskFull
from tests.small_disks import MIB, small_disk

HEAD = Head("1", "inst", "h1", "2026-11-21T12:00:00+00:00")
NOISE = random.Random(1).randbytes(200_000)
PIECES = [
    ("records/00000001.jsonl", b'{"of":"store"}\n'),
    ("snapshots/snp_1/00000001", NOISE),
    ("snapshots/snp_1/00000002", b""),
    ("snapshots/snp_2/00000001", b"x"),
]


def written() -> bytes:
    out = io.BytesIO()
    writer = Writer(out, HEAD)
    for name, data in PIECES:
        writer.add(name, data)
    writer.close(Contents(executions=3, gone=("snp_2",)))
    return out.getvalue()


WHOLE = written()


def test_it_reads_as_it_was_written() -> None:
    reader = Reader(io.BytesIO(WHOLE))
    assert [(piece.name, piece.data) for piece in reader] == PIECES
    whole = verified(io.BytesIO(WHOLE))
    assert whole.head == HEAD
    assert replace(whole.contents, chain="", bytes=0) == Contents(executions=3, gone=("snp_2",))
    assert whole.files == {"snp_1"}
    assert reader.contents == whole.contents


def test_any_tar_reads_it(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(zstandard.ZstdDecompressor().decompressobj().decompress(WHOLE))
    done = subprocess.run(["tar", "-tf", tmp_path / "b.tar"], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["backup.json", *(name for name, _ in PIECES), "manifest.json"]
    assert all("Ignoring unknown extended header keyword" in line for line in done.stderr.splitlines())


@given(st.data())
def test_cut_off_anywhere_it_is_refused(data: st.DataObject) -> None:
    upto = data.draw(st.integers(0, len(WHOLE) - 64))  # behind that nothing is said any more
    with pytest.raises(BadInput, match="the backup is damaged") as refused:
        verified(io.BytesIO(WHOLE[:upto]))
    assert refused.value.data["field"] == "file"


@given(st.data())
def test_a_changed_byte_is_refused(data: st.DataObject) -> None:
    at, by = data.draw(st.integers(0, len(WHOLE) - 1)), data.draw(st.integers(1, 255))
    broken = bytearray(WHOLE)
    broken[at] ^= by
    try:
        whole = verified(io.BytesIO(bytes(broken)))
    except BadInput as refused:
        assert "damaged" in refused.message
    else:  # a bit that says nothing of the content (zstd's window, an unused field)
        assert whole == verified(io.BytesIO(WHOLE))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda members: members[:2] + members[3:], "missing, doubled or not where they were"),
        (lambda members: [*members[:2], members[1], *members[2:]], "missing, doubled or not where they were"),
        (lambda members: [members[0], members[2], members[1], *members[3:]], "missing, doubled or not where they were"),
        (
            lambda members: [(members[0][0], members[0][1].replace(b"inst", b"tsni"), members[0][2]), *members[1:]],
            "backup.json",
        ),
        (lambda members: members[1:], "does not begin as a backup does"),
        (lambda members: members[:-1], "before its manifest"),
        (lambda members: [], "before its manifest"),
    ],
)
def test_put_together_otherwise_it_is_refused(
    change: Callable[[list[tuple[str, bytes, str]]], list[tuple[str, bytes, str]]], said: str
) -> None:
    """By somebody with a tar of their own."""
    plain = io.BytesIO(zstandard.ZstdDecompressor().decompressobj().decompress(WHOLE))
    members = []
    with tarfile.open(fileobj=plain) as archive:
        for info in archive:
            content = archive.extractfile(info)
            assert content is not None
            members.append((info.name, content.read(), info.pax_headers[SHA256]))
    assert members[-1][0] == MANIFEST
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data, digest in change(members):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), {SHA256: digest}
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(BadInput, match=said):
        verified(io.BytesIO(zstandard.ZstdCompressor().compress(out.getvalue())))


@pytest.mark.parametrize("content", [b"", b"hello", os.urandom(4096), zstandard.ZstdCompressor().compress(b"hello")])
def test_what_is_no_backup(content: bytes) -> None:
    with pytest.raises(BadInput, match="the backup is damaged"):
        verified(io.BytesIO(content))


def test_a_newer_format_is_named() -> None:
    out = io.BytesIO()
    Writer(out, replace(HEAD, format=2)).close(Contents())
    with pytest.raises(BadInput, match="format 2"):
        verified(io.BytesIO(out.getvalue()))


class TestOutput:
    def test_it_has_its_name_when_it_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "b"
        with Output(str(path)) as file:
            file.write(b"whole")
            assert not path.exists()
        assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"whole", 0o600)
        assert [each.name for each in tmp_path.iterdir()] == ["b"]

    def test_what_fails_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(KeyError), Output(str(tmp_path / "b")) as file:
            file.write(b"half")
            raise KeyError
        assert list(tmp_path.iterdir()) == []

    def test_a_name_that_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "b").write_bytes(b"before")
        with pytest.raises(BadInput, match="is there already"), Output(str(tmp_path / "b")):
            pass
        with pytest.raises(KeyError), Output(str(tmp_path / "b"), replace=True) as file:
            file.write(b"half")
            raise KeyError
        assert (tmp_path / "b").read_bytes() == b"before"
        with Output(str(tmp_path / "b"), replace=True) as file:
            file.write(b"after")
        assert (tmp_path / "b").read_bytes() == b"after"

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="there is no folder"), Output(str(tmp_path / "no" / "b")):
            pass

    def test_what_a_kill_left_is_removed_by_the_next_one(self, tmp_path: Path) -> None:
        code = (
            "import os, sys\nfrom orchestrator.backup import Output\n"
            "with Output(sys.argv[1]) as file:\n    file.write(b'half')\n    os.kill(os.getpid(), 9)\n"
        )
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=False)
        (left,) = tmp_path.iterdir()
        with Output(str(tmp_path / "b")) as file:
            file.write(b"whole")
            with pytest.raises(KeyError), Output(str(tmp_path / "b")):  # another's, which lives, stays
                raise KeyError
        assert not left.exists()
        assert (tmp_path / "b").read_bytes() == b"whole"

    @pytest.mark.root
    def test_a_full_disk(self, short_dir: Path) -> None:
        with small_disk(short_dir, size_bytes=8 * MIB) as disk:
            with pytest.raises(DiskFull) as refused, Output(str(disk.point / "b")) as file:
                while True:
                    file.write(bytes(MIB))
            assert refused.value.data["where"] == "backup"
            assert [each.name for each in disk.point.iterdir()] == ["lost+found"]
