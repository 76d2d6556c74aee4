"""The port Archive, sentence by sentence, on a folder and on a real S3 server; and HistoryArchive on both."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.archive import Archive
from orchestrator.archives.disk import DiskArchive
from orchestrator.archives.histories import SEGMENT_BYTES, ArchivedHistories
from orchestrator.archives.place import archive_at
from orchestrator.errors import ArchiveUnavailable, Damaged, DiskFull, NotFound
from orchestrator.events import Cursor, Event
from orchestrator.history import Page
from tests.s3_server import KEY, SECRET, s3_server


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "root") as address:
        yield address


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)


@pytest.fixture(params=["disk", "s3"])
def archive(request: pytest.FixtureRequest, short_dir: Path) -> Archive:
    if request.param == "disk":
        return archive_at(f"file://{short_dir}", "test")
    request.getfixturevalue("aws")
    return archive_at(f"s3://bucket/{short_dir.name}", "test", endpoint=request.getfixturevalue("endpoint"))


def read(archive: Archive, name: str) -> bytes:
    return b"".join(archive.get(name))


def names(archive: Archive, prefix: str = "") -> list[str]:
    return sorted(one.name for one in archive.list(prefix))


def test_what_was_put_is_there(archive: Archive) -> None:
    began = datetime.now(UTC) - timedelta(seconds=2)
    archive.put("snapshots/snp_1/a.tar.zst", [b"one", b"", b"two"])
    archive.put("snapshots/snp_1/on-nothing.json", [])
    archive.put("snapshots/snp_10/b", [b"x"])
    archive.put("histories/exe_1/1.json", [b"y"])
    assert read(archive, "snapshots/snp_1/a.tar.zst") == b"onetwo"
    assert read(archive, "snapshots/snp_1/on-nothing.json") == b""
    assert names(archive, "snapshots/snp_1/") == ["snapshots/snp_1/a.tar.zst", "snapshots/snp_1/on-nothing.json"]
    assert len(names(archive)) == 4 and names(archive, "snapshots/never/") == []
    (found,) = archive.list("histories/")
    assert found.size_bytes == 1 and began <= found.changed_at <= datetime.now(UTC) + timedelta(seconds=2)
    archive.put("histories/exe_1/1.json", [b"other"])
    assert read(archive, "histories/exe_1/1.json") == b"other"
    for _ in range(2):
        archive.remove("histories/exe_1/1.json")
    assert names(archive, "histories/") == []
    with pytest.raises(NotFound):
        read(archive, "histories/exe_1/1.json")
    archive.tidy(datetime.now(UTC))
    assert len(names(archive)) == 3


def test_what_breaks_off_is_not_there(archive: Archive) -> None:
    def breaks(after: int) -> Iterator[bytes]:
        yield from itertools.repeat(bytes(1 << 20), after)
        raise ConnectionResetError("its sender is gone")

    archive.put("snapshots/snp_1/a", [b"before"])
    for after in (0, 1, 40):
        with pytest.raises(ConnectionResetError, match="its sender is gone"):
            archive.put("snapshots/snp_1/a", breaks(after))
        with pytest.raises(ConnectionResetError):
            archive.put("snapshots/snp_1/b", breaks(after))
    assert names(archive) == ["snapshots/snp_1/a"] and read(archive, "snapshots/snp_1/a") == b"before"


MEASURED = """
import hashlib, os, resource, sys
from orchestrator.archives.place import archive_at
url, endpoint, mib = sys.argv[1], sys.argv[2], int(sys.argv[3])
archive = archive_at(url, "test", endpoint=endpoint)
archive.put("warm", [b"up"])
b"".join(archive.get("warm"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sent, came = hashlib.sha256(), hashlib.sha256()
def chunks():
    for _ in range(mib):
        piece = os.urandom(1 << 20)
        sent.update(piece)
        yield piece
archive.put("large", chunks())
pieces = archive.get("large")
for piece in pieces:
    came.update(piece)
pieces.close()
assert sent.digest() == came.digest()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mib", [150, pytest.param(2048, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["disk", "s3"])
def test_memory_is_bounded(kind: str, mib: int, endpoint: str, short_dir: Path, aws: None) -> None:
    url = f"file://{short_dir}" if kind == "disk" else f"s3://bucket/{short_dir.name}"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, url, endpoint, str(mib)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 128 * 1024


def test_who_is_not_let_in_is_told(endpoint: str, aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    there = archive_at("s3://no-such-bucket/x", "test", endpoint=endpoint)
    for ask in (lambda: there.put("a", [b"x"]), lambda: [*there.list("")]):
        with pytest.raises(ArchiveUnavailable, match="no-such-bucket"):
            ask()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    there = archive_at("s3://bucket", "test", endpoint=endpoint)
    with pytest.raises(ArchiveUnavailable, match="SignatureDoesNotMatch") as caught:
        there.put("a", [b"x"])
    assert SECRET not in str(caught.value) and "another" not in str(caught.value)
    assert KEY not in there.where()


def test_a_folder_that_is_not_mounted_is_no_empty_archive(short_dir: Path) -> None:
    there = archive_at(f"file://{short_dir}/mnt", "test")
    for ask in (
        lambda: there.put("a", [b"x"]),
        lambda: [*there.list("")],
        lambda: there.remove("a"),
        lambda: there.tidy(datetime.now(UTC)),
    ):
        with pytest.raises(ArchiveUnavailable, match="is it mounted"):
            ask()
    assert not (short_dir / "mnt").exists()


@pytest.mark.root
def test_a_full_disk_is_named_and_takes_again_what_fits(short_dir: Path) -> None:
    small = short_dir / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "carrel-test", small], check=True)
    try:
        there = DiskArchive(small, small / "test")
        there.put("first", [bytes(1 << 20)])
        with pytest.raises(DiskFull) as caught:
            there.put("second", itertools.repeat(os.urandom(1 << 20), 8))
        assert caught.value.data["where"] == "archive" and str(small) in caught.value.message
        assert names(there) == ["first"] and len([*small.rglob("*")]) == 2  # nothing half is left
        there.remove("first")
        there.put("second", itertools.repeat(os.urandom(1 << 20), 3))
        assert names(there) == ["second"]
    finally:
        subprocess.run(["umount", small], check=True)


def test_what_a_crash_left_half_goes_in_time(short_dir: Path) -> None:
    killed = (
        "import os, sys\nfrom orchestrator.archives.place import archive_at\n"
        "def chunks():\n    yield b'half'\n    os._exit(137)\n"
        "archive_at(sys.argv[1], 'test').put('snapshots/snp_1/a', chunks())"
    )
    subprocess.run([sys.executable, "-c", killed, f"file://{short_dir}"], check=False)
    there, now = archive_at(f"file://{short_dir}", "test"), datetime.now(UTC)
    left = list(short_dir.rglob(".new-*"))
    assert len(left) == 1 and names(there) == []
    there.tidy(now)
    assert left[0].exists()
    there.tidy(now + timedelta(hours=2))
    assert not left[0].exists()


# -- histories ---------------------------------------------------------------------------------------------------------


def a_history(count: int, *, body_bytes: int = 10) -> list[Event]:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    bodies = (b"text \xc3\xa9\r\n" * body_bytes, None, b"", b"\xff\x00" * body_bytes)
    return [
        Event(
            seq,
            "output" if bodies[seq % 4] is not None else "execution.state",
            moment + timedelta(milliseconds=seq),
            1 + seq // 100,
            "harness" if seq % 3 else "platform",
            {"stream": "stdout", "seq": seq, "odd": "\ud800\u2028"},
            bodies[seq % 4],
        )
        for seq in range(1, count + 1)
    ]


async def in_pages(events: list[Event], at_once: int, generation: int = 1) -> AsyncIterator[Page]:
    for begin in range(0, len(events), at_once):
        yield Page(tuple(events[begin : begin + at_once]), len(events), begin + at_once >= len(events), generation)


async def all_of(histories: ArchivedHistories, cursor: Cursor, *, limit: int, max_bytes: int) -> list[Event]:
    told: list[Event] = []
    while True:
        page = await histories.read("exe_1", cursor, limit=limit, max_bytes=max_bytes)
        assert len(page.events) <= limit
        told += page.events
        if page.closed:
            return told
        assert page.events
        cursor = page.next


async def test_a_history_is_read_as_it_was_from_any_cursor(archive: Archive) -> None:
    events = a_history(700, body_bytes=4000)  # several segments
    await ArchivedHistories(archive).keep("exe_1", in_pages(events, 90, generation=2))
    assert len(names(archive, "histories/exe_1/")) > 2 and SEGMENT_BYTES < 5 << 20
    histories = ArchivedHistories(archive)
    assert await all_of(histories, Cursor(2, 0), limit=1000, max_bytes=1 << 30) == events
    for seq in (1, 299, 698, 699, 700):
        assert await all_of(histories, Cursor(2, seq), limit=37, max_bytes=100_000) == events[seq:]
    page = await histories.read("exe_1", Cursor(2, 5), limit=10, max_bytes=1)
    assert [event.seq for event in page.events] == [6] and not page.closed and page.tail == 700
    before = {name: read(archive, name) for name in names(archive)}
    await ArchivedHistories(archive).keep("exe_1", in_pages(events, 400, generation=2))
    assert {name: read(archive, name) for name in names(archive)} == before
    with pytest.raises(NotFound):
        await histories.read("exe_2", Cursor(), limit=10, max_bytes=10)


async def test_a_damaged_history_is_called_so(archive: Archive) -> None:
    await ArchivedHistories(archive).keep("exe_1", in_pages(a_history(5), 5))
    segment = next(name for name in names(archive) if not name.endswith(".json"))
    archive.put(segment, [hashlib.sha256().digest()])
    with pytest.raises(Damaged) as caught:
        await ArchivedHistories(archive).read("exe_1", Cursor(), limit=10, max_bytes=1000)
    assert caught.value.data["what"] == segment
    archive.put("histories/exe_1/1.json", [b"{}"])
    with pytest.raises(Damaged):
        await ArchivedHistories(archive).read("exe_1", Cursor(), limit=10, max_bytes=1000)
