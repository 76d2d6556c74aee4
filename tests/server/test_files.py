"""Files over HTTP. What may be opened is decided by the port and attacked in its own suite; here: that nothing gets
past it, and how content is handed out. Numbers are of the design's list of attacks."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import errors
from orchestrator.server.parts import ServerSettings
from tests.server.conftest import Api, until, with_settings

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def settings() -> ServerSettings:
    return with_settings(upload_limit_bytes=2 << 20, stall_limit_s=1.0)


async def workspace(api: Api) -> tuple[str, Path]:
    """The id of one that runs, and its /workspace on this host."""
    lease = await api.running()
    return lease.execution_id, api.workspaces.slot(f"sbx_{lease.execution_id}_1").path / "vol" / "workspace"


async def test_what_is_written_is_read(api: Api) -> None:
    id, folder = await workspace(api)
    files = api.client.execution(id).files
    entry = await files.write("a/b/data.bin", CONTENT, mode=0o600)
    assert (entry.path, entry.kind, entry.size_bytes, entry.mode) == ("a/b/data.bin", "file", len(CONTENT), "0600")
    assert (folder / "a/b/data.bin").read_bytes() == CONTENT
    assert await files.read("a/b/data.bin") == CONTENT
    assert await files.stat("a/b") == (await files.stat("a/b")).model_copy()
    assert (await files.stat("a/b")).kind == "directory"
    await files.write("a/b/data.bin", b"")
    assert await files.read("a/b/data.bin") == b""


@pytest.mark.parametrize(
    ("asked", "status", "start", "end"),
    [
        (None, 200, 0, 1000),
        ("bytes=0-", 206, 0, 1000),
        ("bytes=0-0", 206, 0, 1),
        ("bytes=999-", 206, 999, 1000),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=10-99999", 206, 10, 1000),
        ("bytes=-10", 206, 990, 1000),
        ("bytes=-99999", 206, 0, 1000),
        ("bytes=5-2", 200, 0, 1000),
        ("bytes=0-1,5-6", 200, 0, 1000),
        ("lines=0-1", 200, 0, 1000),
        ("bytes=-", 200, 0, 1000),
    ],
)
async def test_ranges(api: Api, asked: str | None, status: int, start: int, end: int) -> None:
    id, folder = await workspace(api)
    (folder / "f").write_bytes(CONTENT[:1000])
    headers = {"range": asked} if asked else {}
    answer = await api.http.get(f"/v1/executions/{id}/files/f", headers=headers)
    assert (answer.status_code, answer.content) == (status, CONTENT[start:end])
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/1000"
    head = await api.http.head(f"/v1/executions/{id}/files/f", headers=headers)
    assert (head.status_code, head.headers["content-length"], head.content) == (status, str(end - start), b"")


@pytest.mark.parametrize("asked", ["bytes=1000-", "bytes=5000-6000", "bytes=-0"])
async def test_a_range_behind_the_end_is_416(api: Api, asked: str) -> None:
    id, folder = await workspace(api)
    (folder / "f").write_bytes(CONTENT[:1000])
    answer = await api.http.get(f"/v1/executions/{id}/files/f", headers={"range": asked})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */1000"), answer.text


async def test_etags(api: Api) -> None:
    id, folder = await workspace(api)
    (folder / "f").write_bytes(b"one")
    path = f"/v1/executions/{id}/files/f"
    etag = (await api.http.get(path)).headers["etag"]
    assert etag.startswith('"') and etag.endswith('"')
    for said in (etag, f'"x", {etag}', "*"):
        answer = await api.http.get(path, headers={"if-none-match": said})
        assert (answer.status_code, answer.content) == (304, b"")
    part = await api.http.get(path, headers={"if-range": etag, "range": "bytes=1-"})
    assert (part.status_code, part.content) == (206, b"ne")
    (folder / "f").write_bytes(b"other")
    changed = await api.http.get(path, headers={"if-range": etag, "if-none-match": etag, "range": "bytes=1-"})
    assert (changed.status_code, changed.content) == (200, b"other")


async def test_a_directory_is_paged_in_order(api: Api) -> None:
    id, folder = await workspace(api)
    names = [f"f{at:03}" for at in range(25)]
    for name in names:
        (folder / name).write_bytes(b"x")
    (folder / "sub").mkdir()
    (folder / "sub" / "deep").write_bytes(b"x")
    (folder / "zlink").symlink_to("/etc/passwd")
    files = api.client.execution(id).files
    path = f"/v1/executions/{id}/files/"
    got: list[Any] = []
    after = ""
    while True:
        page = (await api.http.get(path, params={"limit": 10, "after": after, "recursive": True})).json()
        got += page["entries"]
        after = page["next"]
        if not after:
            break
    assert [entry["path"] for entry in got if entry["path"] not in {"artifacts"}] == [
        *names,
        "sub",
        "sub/deep",
        "zlink",
    ]
    assert got[-1]["kind"] == "symlink" and got[-1]["target"] == "/etc/passwd"
    assert [entry.path async for entry in files.list("sub")] == ["sub/deep"]
    assert (await api.http.get(path.rstrip("/"))).json() == (await api.http.get(path)).json()
    assert (await api.http.get(path, params={"after": "%%"})).json()["field"] == "after"


@pytest.mark.parametrize(
    "path",
    [
        "../etc/passwd",
        "..%2f..%2fetc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "a/../../x",
        "%00",
        "x%00.txt",
        "%252e%252e/x",
        "/etc/passwd",
        "//etc/passwd",
        "/proc/self/environ",
        "a" * 5000,
    ],
)
async def test_43_paths_that_lead_out_are_refused(api: Api, path: str) -> None:
    id, _ = await workspace(api)
    for verb, place in (("GET", "files"), ("PUT", "files"), ("GET", "artifacts"), ("HEAD", "files")):
        if verb == "PUT" and path == "%252e%252e/x":
            continue  # a fine name for a file, once decoded
        status = await raw(api, verb, f"/v1/executions/{id}/{place}/{path}")
        assert 400 <= status < 500, (verb, place, status)


async def raw(api: Api, verb: str, path: str) -> int:
    """The status of a request whose path is sent as it stands: a client library would tidy it up."""
    reader, writer = await asyncio.open_unix_connection(str(api.socket))
    try:
        writer.write(
            f"{verb} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.token}\r\n"
            "Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        line = await reader.readline()
        await reader.read()
        return int(line.split()[1])
    finally:
        writer.close()


def get(api: Api, path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.token}\r\n\r\n".encode()


async def test_44_46_links_out_and_what_is_no_file_are_not_opened(api: Api) -> None:
    id, folder = await workspace(api)
    (folder / "out").symlink_to("/etc/passwd")
    (folder / "root").symlink_to("/")
    (folder / "magic").symlink_to("/proc/self/root/etc/passwd")
    os.mkfifo(folder / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(folder)  # a socket's path is short
    try:
        listening.bind("sock")
    finally:
        os.chdir(here)
        listening.close()
    for path in ("out", "root/etc/passwd", "magic", "fifo", "sock"):
        answer = await api.http.get(f"/v1/executions/{id}/files/{path}")
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert b"root:" not in answer.content


async def test_50_content_is_handed_out_as_nothing_a_browser_runs(api: Api) -> None:
    id, folder = await workspace(api)
    hostile = 'a"\r\nX-Evil: 1;<script>é.html'
    (folder / hostile).write_text("<script>alert(1)</script>")
    (folder / "artifacts").mkdir(exist_ok=True)
    os.link(folder / hostile, folder / "artifacts" / hostile)
    (entry,) = [one async for one in api.client.execution(id).files.list() if one.kind == "file"]
    assert entry.path == hostile
    for place in ("files", "artifacts"):
        quoted = "".join(f"%{byte:02X}" for byte in hostile.encode())
        answer = await api.http.get(f"/v1/executions/{id}/{place}/{quoted}")
        assert answer.text == "<script>alert(1)</script>"
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]
        disposition = answer.headers["content-disposition"]
        assert disposition.startswith("attachment; filename*=UTF-8''") and "x-evil" not in answer.headers


async def test_names_that_are_not_utf8_can_be_listed_and_read(api: Api) -> None:
    id, folder = await workspace(api)
    name = b"caf\xe9"
    Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"latin")
    (entry,) = (await api.http.get(f"/v1/executions/{id}/files/")).json()["entries"][-1:]
    assert (entry["path"], base64.b64decode(entry["path_b64"])) == ("caf\ufffd", name)
    assert (await api.http.get(f"/v1/executions/{id}/files/caf%E9")).content == b"latin"


async def test_what_is_not_there(api: Api) -> None:
    id, folder = await workspace(api)
    (folder / "d").mkdir()
    files = api.client.execution(id).files
    with pytest.raises(errors.NotFound):
        await files.read("nope")
    with pytest.raises(errors.Conflict):
        await files.read("d")
    with pytest.raises(errors.Conflict):
        await files.write("d", b"x")
    queued = await api.submit()
    with pytest.raises(errors.Conflict):
        await api.client.execution(queued).files.read("x")
    for mode in ("9", "4755", "-1", "0x1"):
        answer = await api.http.put(f"/v1/executions/{id}/files/x", params={"mode": mode}, content=b"")
        assert (answer.status_code, answer.json()["field"]) == (422, "mode")


async def test_an_upload_over_the_bound_leaves_nothing(api: Api) -> None:
    id, folder = await workspace(api)

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 20)

    before = sorted(folder.rglob("*"))
    for content in (endless(), b"x" * (3 << 20)):
        answer = await api.http.put(f"/v1/executions/{id}/files/big", content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    answer = await api.http.post("/v1/blobs", content=endless())
    assert (answer.status_code, answer.json()["field"]) == (413, "content")
    assert sorted(folder.rglob("*")) == before


async def test_an_upload_that_stalls_or_breaks_off_leaves_nothing(api: Api) -> None:
    id, folder = await workspace(api)
    before = sorted(folder.rglob("*"))
    for leave in (False, True):
        reader, writer = await asyncio.open_unix_connection(str(api.socket))
        writer.write(
            f"PUT /v1/executions/{id}/files/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            f"Authorization: Bearer {api.token}\r\n\r\nhalf".encode()
        )
        await writer.drain()
        if leave:
            writer.close()
            continue
        assert b" 422 " in await reader.readline()
        writer.close()
    await until(lambda: sorted(folder.rglob("*")) == before)


async def test_blobs_are_named_by_content(api: Api) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert (await api.http.head(f"/v1/blobs/{digest}")).status_code == 404
    made = await api.http.post("/v1/blobs", content=CONTENT)
    assert (made.status_code, made.json()) == (201, {"sha256": digest, "size_bytes": len(CONTENT)})
    there = await api.http.head(f"/v1/blobs/{digest}")
    assert (there.status_code, there.headers["x-size-bytes"]) == (200, str(len(CONTENT)))
    for odd in ("..", "x", digest.upper(), digest + "0"):
        assert (await api.http.head(f"/v1/blobs/{odd}")).status_code == 404


async def test_artifacts_are_listed_with_digests_and_fetched(api: Api) -> None:
    id, folder = await workspace(api)
    execution = api.client.execution(id)
    assert await execution.artifacts.list() == []
    (folder / "artifacts" / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "artifacts" / "sub" / "report.xml").write_bytes(CONTENT)
    (folder / "artifacts" / "link").symlink_to("/etc/passwd")
    (folder / "artifacts" / "huge").touch()
    os.truncate(folder / "artifacts" / "huge", 1 << 40)  # sparse: nobody reads a terabyte of nothing for a listing
    listed = {one.path: one for one in await execution.artifacts.list()}
    assert sorted(listed) == ["huge", "sub/report.xml"]
    assert listed["sub/report.xml"].sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (listed["huge"].sha256, listed["huge"].size_bytes) == (None, 1 << 40)
    answer = await api.http.get(f"/v1/executions/{id}/artifacts/sub/report.xml")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert (await api.http.get(f"/v1/executions/{id}/artifacts/")).status_code == 404


async def test_45_a_file_that_shrinks_while_it_is_read_breaks_off_and_is_not_padded(api: Api) -> None:
    id, folder = await workspace(api)
    (folder / "f").write_bytes(b"x" * (8 << 20))
    reader, writer = await asyncio.open_unix_connection(str(api.socket), limit=1 << 16)
    writer.write(get(api, f"/v1/executions/{id}/files/f"))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"content-length: 8388608" in head
    os.truncate(folder / "f", 1 << 20)
    body = await reader.read(-1)
    assert len(body) < 8 << 20 and set(body) == {ord("x")}
    writer.close()


async def test_slow_files_do_not_hold_up_the_rest(api: Api) -> None:
    """More downloads that nobody reads than there are threads for files: others are served all the same."""
    id, folder = await workspace(api)
    (folder / "f").write_bytes(b"x" * (4 << 20))
    lazy = []
    try:
        for _ in range(40):
            _, writer = await asyncio.open_unix_connection(str(api.socket), limit=1024)
            writer.write(get(api, f"/v1/executions/{id}/files/f"))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            lazy.append(writer)
        assert await api.client.execution(id).files.read("f") == b"x" * (4 << 20)
    finally:
        for writer in lazy:
            writer.transport.abort()
