"""Files over HTTP that change: conditions, folders, moves, removal, archives both ways, search, and changes as events.
Numbers are of the design's list of attacks."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from orchestrator.server.parts import ServerSettings
from orchestrator.tokens import Scope
from tests.server.conftest import Api, with_settings
from tests.server.test_files import raw, workspace


@pytest.fixture
def settings() -> ServerSettings:
    return with_settings(upload_limit_bytes=2 << 20, unpack_limit_bytes=256 << 20, stall_limit_s=5.0, heartbeat_s=0.2)


async def test_a_condition_holds_or_nothing_is_written(api: Api) -> None:
    id, folder = await workspace(api)
    path = f"/v1/executions/{id}/files/deep/er/f"
    made = await api.http.put(path, content=b"one", headers={"if-none-match": "*"})
    assert made.status_code == 201 and made.headers["etag"] == made.json()["etag"]
    again = await api.http.put(path, content=b"two", headers={"if-none-match": "*"})
    assert (again.status_code, again.json()["code"]) == (412, "changed")
    assert f'"{again.json()["etag"]}"' == made.headers["etag"]
    second = await api.http.put(path, content=b"two", headers={"if-match": made.headers["etag"]})
    assert second.status_code == 201
    stale = await api.http.put(path, content=b"three", headers={"if-match": made.headers["etag"]})
    assert stale.status_code == 412
    assert (folder / "deep/er/f").read_bytes() == b"two"
    (folder / "deep/er/f").write_bytes(b"by a program inside")
    inside = await api.http.put(path, content=b"three", headers={"if-match": second.headers["etag"]})
    assert inside.status_code == 412
    absent = await api.http.put(f"/v1/executions/{id}/files/new/x", content=b"x", headers={"if-match": "*"})
    assert absent.status_code == 412 and not (folder / "new").exists()
    for header in ({"if-match": "W/x"}, {"if-match": '"a", "b"'}, {"if-none-match": '"a"'}):
        assert (await api.http.put(path, content=b"x", headers=header)).status_code == 422
    assert [one.name for one in (folder / "deep/er").iterdir()] == ["f"]


async def test_of_many_conditional_writes_one_wins(api: Api) -> None:
    id, folder = await workspace(api)
    path = f"/v1/executions/{id}/files/f"
    etag = (await api.http.put(path, content=b"first")).headers["etag"]
    answers = await asyncio.gather(
        *(api.http.put(path, content=b"%d" % at, headers={"if-match": etag}) for at in range(20))
    )
    assert sorted(one.status_code for one in answers) == [201] + [412] * 19
    won = next(at for at, one in enumerate(answers) if one.status_code == 201)
    assert (folder / "f").read_bytes() == b"%d" % won


async def test_folders_are_made_and_moved_and_removed(api: Api) -> None:
    id, folder = await workspace(api)
    at = f"/v1/executions/{id}/files"
    made = await api.http.post(f"{at}/a/b/c", params={"op": "mkdir"})
    assert (made.status_code, made.json()["kind"]) == (201, "directory")
    assert (await api.http.post(f"{at}/a/b/c", params={"op": "mkdir"})).status_code == 201
    (folder / "a/f").write_bytes(b"f")
    (folder / "g").write_bytes(b"g")
    assert (await api.http.post(f"{at}/a/f", params={"op": "mkdir"})).status_code == 409
    moved = await api.http.post(f"{at}/a/f", params={"op": "move", "to": "x/y/caf\xe9 f"})
    assert (moved.status_code, moved.json()["path"]) == (200, "x/y/caf\xe9 f")
    assert not (folder / "a/f").exists()
    over = await api.http.post(f"{at}/g", params={"op": "move", "to": "x/y/caf\xe9 f"})
    assert over.status_code == 409 and (folder / "g").exists()
    over = await api.http.post(f"{at}/g", params={"op": "move", "to": "x/y/caf\xe9 f", "overwrite": True})
    assert over.status_code == 200 and (folder / "x/y/caf\xe9 f").read_bytes() == b"g"
    for params in ({"op": "move"}, {"op": "fly"}, {}, {"op": "move", "to": "a/in"}, {"op": "move", "to": "../out"}):
        assert (await api.http.post(f"{at}/a", params=params)).status_code == 422, params
    assert (await api.http.post(f"{at}/", params={"op": "move", "to": "z"})).status_code == 422
    assert (await api.http.post(f"{at}/nope", params={"op": "move", "to": "new/z"})).status_code == 404
    assert not (folder / "new").exists()
    assert (await api.http.delete(f"{at}/a")).status_code == 409
    assert (await api.http.delete(f"{at}/a", params={"recursive": True})).status_code == 204
    assert (await api.http.delete(f"{at}/a")).status_code == 404
    assert (await api.http.delete(f"{at}/", params={"recursive": True})).status_code == 422
    (folder / "link").symlink_to("x")
    assert (await api.http.delete(f"{at}/link", params={"recursive": True})).status_code == 204
    assert sorted(one.name for one in folder.iterdir()) == ["artifacts", "x"]


async def test_names_that_are_not_utf8_are_moved(api: Api) -> None:
    id, folder = await workspace(api)
    (folder / "f").write_bytes(b"x")
    answer = await api.http.post(f"/v1/executions/{id}/files/f?op=move&to=caf%E9%2F%FF")
    assert answer.status_code == 200, answer.text
    assert (folder / os.fsdecode(b"caf\xe9/\xff")).read_bytes() == b"x"


@pytest.mark.parametrize("path", ["../x", "%2e%2e/x", "/etc/x", "x%00", "a" * 5000, "/proc/self/root/x"])
async def test_43_changes_do_not_lead_out_either(api: Api, path: str) -> None:
    id, folder = await workspace(api)
    (folder / "f").write_bytes(b"f")
    at = f"/v1/executions/{id}/files"
    before = sorted(folder.parent.parent.rglob("*"))
    for verb, target in (
        ("POST", f"{at}/{path}?op=mkdir"),
        ("POST", f"{at}/{path}?op=move&to=g"),
        ("POST", f"{at}/f?op=move&to={path}"),
        ("DELETE", f"{at}/{path}?recursive=true"),
        ("PUT", f"{at}/{path}?unpack=tar"),
        ("GET", f"{at}/{path}?archive=tar"),
        ("GET", f"{at}/{path}?watch=true"),
        ("GET", f"{at}/{path}?glob=*"),
    ):
        status = await raw(api, verb, target)
        assert 400 <= status < 500, (verb, target, status)
    assert sorted(folder.parent.parent.rglob("*")) == before


def furnish(folder: Path) -> dict[str, bytes]:
    """Files in it, by path; and what is no file."""
    made = {"a.txt": b"a", "sub/deep/b.bin": os.urandom(300_000), "empty": b"", "x" * 120 + "/" + "y" * 120: b"long"}
    for path, content in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (folder / "a.txt").chmod(0o4755)
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("sub/deep")
    (folder / "out").symlink_to("/etc/passwd")
    os.mkfifo(folder / "fifo")
    return made


def plain(format: str, data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if format == "tar.zst" else data


@pytest.mark.parametrize("format", ["tar", "tar.zst", "zip"])
async def test_a_folder_goes_out_as_an_archive_and_comes_in_again(api: Api, format: str) -> None:
    id, folder = await workspace(api)
    (folder / "t").mkdir()
    made = furnish(folder / "t")
    answer = await api.http.get(f"/v1/executions/{id}/files/t", params={"archive": format})
    assert answer.status_code == 200 and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f"attachment; filename*=UTF-8''t.{format}"
    got: dict[str, bytes] = {}
    if format == "zip":
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            got = {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
            assert got.pop("link") == b"sub/deep" and got.pop("out") == b"/etc/passwd"
            assert archive.getinfo("a.txt").external_attr >> 16 == 0o100755
    else:
        with tarfile.open(fileobj=io.BytesIO(plain(format, answer.content))) as unpacked:
            for info in unpacked:
                if info.isreg() and (file := unpacked.extractfile(info)):
                    got[info.name] = file.read()
            assert unpacked.getmember("link").linkname == "sub/deep"
            assert unpacked.getmember("a.txt").mode == 0o755, "no setuid bit goes out"
    assert b"FIFO" in got.pop(".carrel-left-out.txt")
    assert got == made
    refused = await api.http.put(f"/v1/executions/{id}/files/again", params={"unpack": format}, content=answer.content)
    assert (refused.status_code, refused.json()["field"]) == (422, "archive"), "`out` leads out"
    assert not (folder / "again").exists()
    (folder / "t/out").unlink()
    (folder / "t/fifo").unlink()
    clean = (await api.http.get(f"/v1/executions/{id}/files/t", params={"archive": format})).content
    done = await api.http.put(f"/v1/executions/{id}/files/n/again", params={"unpack": format}, content=clean)
    assert done.status_code == 201, done.text
    assert (done.json()["files"], done.json()["links"]) == (len(made), 1)
    for path, content in made.items():
        assert (folder / "n/again" / path).read_bytes() == content
    assert (folder / "n/again/link").readlink() == Path("sub/deep")
    assert (folder / "n/again/a.txt").stat().st_mode & 0o7777 == 0o755


async def test_accept_asks_for_an_archive_and_gnu_tar_reads_it(api: Api, tmp_path: Path) -> None:
    id, folder = await workspace(api)
    made = furnish(folder)
    answer = await api.http.get(f"/v1/executions/{id}/files", headers={"accept": "application/x-tar"})
    subprocess.run(["tar", "-x", "-C", tmp_path], input=answer.content, check=True)
    assert {path: (tmp_path / path).read_bytes() for path in made} == made
    subprocess.run(["tar", "-c", "-f", tmp_path / "t.tar", "-C", tmp_path, "sub", "x" * 120, "link"], check=True)
    done = await api.http.put(
        f"/v1/executions/{id}/files/from-gnu", params={"unpack": "tar"}, content=(tmp_path / "t.tar").read_bytes()
    )
    assert done.status_code == 201, done.text
    assert (folder / "from-gnu/sub/deep/b.bin").read_bytes() == made["sub/deep/b.bin"]


async def test_into_a_folder_that_is_there_an_archive_merges(api: Api) -> None:
    id, folder = await workspace(api)
    (folder / "d/sub").mkdir(parents=True)
    (folder / "d/sub/kept").write_bytes(b"kept")
    (folder / "d/sub/old").write_bytes(b"old")
    data = tar(("sub/old", b"new"), ("sub/more/x", b"x"), ("top", b"t"))
    path = f"/v1/executions/{id}/files/d"
    assert (await api.http.put(path, params={"unpack": "tar"}, content=data)).status_code == 201
    there = {str(one.relative_to(folder / "d")): one.read_bytes() for one in (folder / "d").rglob("*") if one.is_file()}
    assert there == {"sub/kept": b"kept", "sub/old": b"new", "sub/more/x": b"x", "top": b"t"}
    clash = await api.http.put(path, params={"unpack": "tar"}, content=tar(("new", b"x"), ("sub", b"a file now")))
    assert clash.status_code == 409 and not (folder / "d/new").exists()
    root = await api.http.put(f"/v1/executions/{id}/files/", params={"unpack": "tar"}, content=tar(("r", b"r")))
    assert root.status_code == 201 and (folder / "r").read_bytes() == b"r"
    assert [one.name for one in folder.parent.iterdir() if one.name.startswith(".")] == []


def tar(*entries: tuple[str, bytes] | tarfile.TarInfo) -> bytes:
    """An archive of (name, content), or of headers as they are."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return made.getvalue()


async def test_search_and_glob(api: Api) -> None:
    id, folder = await workspace(api)
    for path in ("a.py", "src/b.py", "src/deep/c.py", "src/deep/c.txt", "src/test_x"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    at = f"/v1/executions/{id}"

    async def paths(route: str, **params: Any) -> list[str]:
        answer = await api.http.get(at + route, params=params)
        assert answer.status_code == 200, answer.text
        return [entry["path"] for entry in answer.json()["entries"]]

    assert await paths("/files/", glob="**/*.py") == ["a.py", "src/b.py", "src/deep/c.py"]
    assert await paths("/files/", glob="*.py") == ["a.py"]
    assert await paths("/files/src", glob="*/c.*") == ["src/deep/c.py", "src/deep/c.txt"]
    assert await paths("/search", name="c.") == ["src/deep/c.py", "src/deep/c.txt"]
    assert await paths("/search", name="test_?", path="src") == ["src/test_x"]
    first = (await api.http.get(at + "/search", params={"name": "*.py", "limit": 2})).json()
    assert len(first["entries"]) == 2
    assert await paths("/search", name="*.py", limit=2, after=first["next"]) == ["src/deep/c.py"]
    for params in ({"name": ""}, {"name": "a/b"}, {}):
        assert (await api.http.get(at + "/search", params=params)).status_code == 422


async def events(answer: httpx.Response) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
    event = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield event, json.loads(line.removeprefix("data: "))


async def test_changes_are_told_as_they_happen(api: Api) -> None:
    id, folder = await workspace(api)
    (folder / "d").mkdir()
    url = f"/v1/executions/{id}/files/"
    async with api.http.stream("GET", url, params={"watch": True}) as answer, aclosing(events(answer)) as told:
        assert await anext(told) == ("ready", {})
        (folder / "d" / "f").write_bytes(b"x")
        assert await anext(told) == ("change", {"path": "d/f", "change": "created"})
        (folder / "new").mkdir()
        (folder / "new" / "inner").write_bytes(b"x")
        seen: set[str] = set()
        async for event, data in told:
            seen.add(f"{event} {data['change']} {data['path']}")
            if {"change created new", "change created new/inner"} <= seen:
                break
        (folder / "new" / "inner").rename(folder / "moved")
        async for event, data in told:
            seen.add(f"{event} {data['change']} {data['path']}")
            if {"change removed new/inner", "change created moved"} <= seen:
                break
        (folder / "moved").unlink()
        async for _, data in told:
            if data == {"path": "moved", "change": "removed"}:
                break
    gone = await api.http.get(url + "nope", params={"watch": True})
    assert gone.status_code == 404


async def test_a_snapshot_s_files_are_read_and_compared_with_now(api: Api) -> None:
    lease = await api.running()
    id = lease.execution_id
    sandbox_id = f"sbx_{id}_1"
    folder = api.workspaces.slot(sandbox_id).path / "vol" / "workspace"
    (folder / "sub").mkdir()
    (folder / "sub/text").write_text("".join(f"line {at}\n" for at in range(40)))
    (folder / "same").write_bytes(b"same")
    (folder / "gone").write_bytes(b"x")
    (folder / "raw").write_bytes(b"\0\1")
    snapshot = (await api.cut(lease, own=3)).id
    (folder / "sub/text").write_text("".join(f"line {at}\n" for at in range(41) if at != 20))
    (folder / "gone").unlink()
    (folder / "raw").write_bytes(b"\0\2\3")
    (folder / "new").symlink_to("same")
    at = f"/v1/executions/{id}"
    then = {"snapshot": snapshot}
    assert (await api.http.get(f"{at}/files/gone", params=then)).content == b"x"
    assert (await api.http.get(f"{at}/files/gone")).status_code == 404
    listed = (await api.http.get(f"{at}/files/", params={**then, "glob": "**/*e*"})).json()["entries"]
    assert [one["path"] for one in listed] == ["gone", "same", "sub/text"]
    packed = await api.http.get(f"{at}/files/sub", params={**then, "archive": "tar"})
    assert b"line 20\n" in packed.content
    answer = await api.http.get(f"{at}/diff", params={"patch": True})
    assert answer.status_code == 200, answer.text
    page = answer.json()
    assert (page["from"], page["to"], page["next"]) == (snapshot, "now", "")
    changes = {one["path"]: one for one in page["changes"]}
    assert {path: one["change"] for path, one in changes.items()} == {
        "gone": "removed",
        "new": "added",
        "raw": "changed",
        "sub/text": "changed",
    }
    assert (changes["raw"]["before"]["size_bytes"], changes["raw"]["after"]["size_bytes"]) == (2, 3)
    assert changes["raw"]["patch"] is None
    assert changes["gone"]["patch"] == "@@ -1,1 +0,0 @@\n-x\n\\ No newline at end of file\n"
    hunk = ["@@ -18,7 +18,6 @@", " line 17", " line 18", " line 19", "-line 20"]
    assert changes["sub/text"]["patch"].splitlines()[:5] == hunk
    first = (await api.http.get(f"{at}/diff", params={"from": snapshot, "limit": 2})).json()
    rest = (await api.http.get(f"{at}/diff", params={"from": snapshot, "after": first["next"]})).json()
    assert [one["path"] for one in first["changes"] + rest["changes"]] == sorted(changes)
    back = (await api.http.get(f"{at}/diff", params={"from": "now", "to": snapshot, "path": "sub"})).json()
    assert [(one["path"], one["change"]) for one in back["changes"]] == [("sub/text", "changed")]
    await api.workspaces.remove(sandbox_id)
    assert (await api.http.get(f"{at}/files/gone")).content == b"x", "the newest snapshot, where the workspace is gone"
    assert (await api.http.put(f"{at}/files/gone", content=b"y")).status_code == 409
    assert (await api.http.get(f"{at}/files/gone", params={"snapshot": "snp_none"})).status_code == 404
    other = await api.token_for(Scope.READ, tenant="other")
    async with api.caller(other) as http:
        assert (await http.get(f"{at}/files/gone", params=then)).status_code == 404
