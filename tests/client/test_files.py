"""The file interface in both skins, against a real server and a real workspace."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from contextlib import aclosing, closing
from pathlib import Path

import pytest

from orchestrator.client import AsyncClient, Client
from orchestrator.client.nouns import Change
from orchestrator.errors import BadInput, Changed, Conflict, NotFound
from tests.place import Place, until

pytestmark = pytest.mark.root

LATIN = os.fsdecode(b"caf\xe9")


def test_every_method(place: Place, tmp_path: Path) -> None:
    with Client(place.url, place.token) as client:
        execution = client.submit(command=["sleep", "600"])
        until(lambda: execution.refresh().state == "RUNNING", "it runs")
        files = execution.files
        made = files.write("d/a.txt", b"one\n", if_absent=True)
        with pytest.raises(Changed):
            files.write("d/a.txt", b"two\n", if_absent=True)
        second = files.write("d/a.txt", b"two\n", if_match=made.etag)
        with pytest.raises(Changed) as changed:
            files.write("d/a.txt", b"three\n", if_match=made.etag)
        assert changed.value.data["etag"] == second.etag.strip('"')
        assert files.mkdir("e/f").kind == "directory" and files.mkdir("e/f").kind == "directory"
        assert files.move("d/a.txt", LATIN + "/b c+d.txt").size_bytes == 4
        assert [one.path_b64 for one in files.list(LATIN)] == ["Y2Fm6S9iIGMrZC50eHQ="]
        assert [one.path_b64 for one in files.search("c+d", path=LATIN)] == ["Y2Fm6S9iIGMrZC50eHQ="]
        assert [one.size_bytes for one in files.list(glob=LATIN + "/*.txt")] == [4]
        assert files.read(LATIN + "/b c+d.txt") == b"two\n"
        assert files.download(LATIN + "/b c+d.txt", tmp_path / "got").read_bytes() == b"two\n"
        for format in ("tar", "tar.zst", "zip"):
            packed = b"".join(files.archive(LATIN, format=format))
            done = files.unpack(f"again/{format}", packed, format=format)
            assert (done.files, files.read(f"again/{format}/b c+d.txt")) == (1, b"two\n")
        with pytest.raises(BadInput):
            files.unpack("no", b"this is no archive")
        snapshot = execution.snapshot()
        files.remove("again", recursive=True)
        with pytest.raises(Conflict):
            files.remove("e")
        files.write("e/new", b"x\n")
        files.write(LATIN + "/b c+d.txt", b"two\nthree\n")
        assert [one.path for one in files.list("again", snapshot=snapshot.id)] == [
            "again/tar",
            "again/tar.zst",
            "again/zip",
        ]
        assert files.stat("again/tar/b c+d.txt", snapshot=snapshot.id).size_bytes == 4
        with pytest.raises(NotFound):
            files.stat("again")
        found = {(one.change, one.path): one.patch for one in files.diff(patch=True)}
        assert found["added", "e/new"] == "@@ -0,0 +1,1 @@\n+x\n"
        assert found["changed", "caf\ufffd/b c+d.txt"] == "@@ -1,1 +1,2 @@\n two\n+three\n"
        assert {one.path for one in files.diff(snapshot.id, "now", path=LATIN)} == {"caf\ufffd/b c+d.txt"}
        with closing(files.watch()) as told:  # type: ignore[type-var]
            assert next(told) == Change("ready")
            files.move("e/new", LATIN + "/moved")
            seen = {next(told), next(told)}
            assert seen == {Change("removed", "e/new"), Change("created", LATIN + "/moved")}
        with pytest.raises(NotFound):
            next(files.watch("nothing"))
        execution.delete(force=True)


async def test_the_same_with_a_loop(place: Place) -> None:
    async with AsyncClient(place.url, place.token) as client:
        execution = await client.submit(command=["sleep", "600"])
        while (await execution.refresh()).state != "RUNNING":
            await asyncio.sleep(0.02)
        files = execution.files
        made = await files.write("d/a", b"one\n")
        with pytest.raises(Changed):
            await files.write("d/a", b"x", if_match='"other"')
        await files.write("d/a", b"two\n", if_match=made.etag)
        await files.mkdir("e")
        async with aclosing(files.watch("e")) as told:
            assert await anext(told) == Change("ready")
            await files.move("d/a", "e/b")
            assert await anext(told) == Change("created", "e/b")
            await files.remove("e", recursive=True)
            seen = [one.change async for one in told]
            assert seen[-1] == "ended"
        packed = b"".join([piece async for piece in files.archive()])
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            assert sorted(archive.getnames()) == ["artifacts", "d"]
        await files.unpack("t", packed)
        assert [one.path async for one in files.search("art")] == ["artifacts", "t/artifacts"]
        await execution.snapshot()
        await files.write("n", b"n")
        assert [one.path async for one in files.diff()] == ["n"]
        await execution.delete(force=True)
