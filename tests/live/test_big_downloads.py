"""What is larger than a server's memory comes out of it: a folder as one tar.zst, and a file whose download broke off
in the middle. All of it is compared with what was written, by digest, as it comes; nothing of it is kept.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from orchestrator.client import Client
from orchestrator.client.sync import Execution
from tests.memory import growing_less
from tests.place import Place, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

MIB = 1 << 20
MOST_BYTES = 64 * MIB
FILES = 40
SIZES = [
    pytest.param(200 * MIB, id="200 MiB"),
    pytest.param(5 << 30, id="5 GiB", marks=pytest.mark.full),
]


@pytest.fixture
def http(own_place: Place) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=own_place.url, headers={"authorization": f"Bearer {own_place.token}"}, timeout=60
    ) as made:
        yield made


def begun(place: Place, client: Client) -> tuple[Execution, Path]:
    """One that waits, and its /workspace."""
    execution = client.submit(command=["sleep", "3600"], snapshots={"at_end": False})
    until(lambda: execution.refresh().state == "RUNNING", "it runs")
    return execution, place.folder / "d" / "slots" / str(execution.refresh().sandbox_id) / "vol" / "workspace"


def fill(path: Path, size_bytes: int, block: bytes, number: int) -> str:
    """A file that nothing packs and no two parts of which are the same; its digest."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for at in range(0, size_bytes, MIB):
            begin = at % len(block)
            piece = (b"%16d%16d" % (number, at) + block[begin : begin + MIB])[: min(MIB, size_bytes - at)]
            file.write(piece)
            digest.update(piece)
    return digest.hexdigest()


class Pieces(io.RawIOBase):
    """What comes over a connection, to be read as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        self._rest = self._rest or next(self._pieces, b"")
        given = self._rest[: len(into)]
        into[: len(given)] = given
        self._rest = self._rest[len(given) :]
        return len(given)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_folder_as_tar_zst(own_place: Place, http: httpx.Client, size_bytes: int) -> None:
    assert own_place.server is not None
    with Client(own_place.url, own_place.token) as client:
        execution, base = begun(own_place, client)
        (base / "big").mkdir()
        block = os.urandom(64 * MIB)
        written = {
            f"big/{number:02}": fill(base / f"big/{number:02}", size_bytes // FILES, block, number)
            for number in range(FILES)
        }
        came = {}
        with (
            growing_less(own_place.server.pid, MOST_BYTES),
            http.stream("GET", f"/v1/executions/{execution.id}/files/", params={"archive": "tar.zst"}) as answer,
        ):
            assert answer.status_code == 200
            with (
                io.BufferedReader(Pieces(answer.iter_raw())) as arriving,
                zstandard.ZstdDecompressor().stream_reader(arriving) as unpacked,
                tarfile.open(fileobj=unpacked, mode="r|") as archive,
            ):
                for member in archive:
                    if content := archive.extractfile(member):
                        came[member.name] = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
        assert came == written
        execution.delete(force=True)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_file_goes_on_from_the_middle(own_place: Place, http: httpx.Client, size_bytes: int) -> None:
    assert own_place.server is not None
    with Client(own_place.url, own_place.token) as client:
        execution, base = begun(own_place, client)
        written = fill(base / "big", size_bytes, os.urandom(64 * MIB), 0)
        url = f"/v1/executions/{execution.id}/files/big"
        came = hashlib.sha256()
        at = 0
        with growing_less(own_place.server.pid, MOST_BYTES):
            with http.stream("GET", url) as answer:
                assert int(answer.headers["content-length"]) == size_bytes
                etag = answer.headers["etag"]
                for piece in answer.iter_raw():
                    came.update(piece)
                    at += len(piece)
                    if at >= size_bytes // 2:
                        break  # the rest is unread: the connection is closed
            asked = {"range": f"bytes={at}-", "if-range": etag}
            with http.stream("GET", url, headers=asked) as answer:
                assert answer.status_code == 206
                assert answer.headers["content-range"] == f"bytes {at}-{size_bytes - 1}/{size_bytes}"
                assert answer.headers["etag"] == etag
                for piece in answer.iter_raw():
                    came.update(piece)
                    at += len(piece)
        assert at == size_bytes and came.hexdigest() == written
        execution.delete(force=True)
