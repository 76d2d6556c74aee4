"""A malicious workspace behind every verb of the file interface, through the HTTP API of a real server, on both stores:
nothing outside is read or written, nothing hangs, memory is bounded, errors are clear. Attacks 43 to 48, all at once.
"""

from __future__ import annotations

import io
import itertools
import os
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import zstandard

from tests.place import until
from tests.security.hostile import RENAMER, SECRET, TERABYTE, Ground, furnish, serving
from tests.security.test_workspace_archives import END, HOSTILE, HOSTILE_ZIPS, member, zeros

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

MEMORY_BYTES = 64 << 20
WIDE = 3000
LINKS_OUT = ("abs", "up", "chain", "magic", "loop", "absdir/secret", "updir/secret", "dotdot/dotdot/secret")
NO_FILES = ("zero", "disk", "fifo", "tofifo", "sock", "locked", "wide/f000000/x")


@pytest.fixture(scope="module", params=["directory", "btrfs"])
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    with serving(request.param) as made:
        yield made


def clear(answer: httpx.Response, *codes: int) -> None:
    """Refused by us, with words; and without what it must not say."""
    assert answer.status_code in codes, (answer.request.url, answer.status_code, answer.text[:300])
    problem = answer.json()
    assert problem["code"] and (problem.get("title") or problem.get("detail")), problem
    assert SECRET not in answer.content and b"root:" not in answer.content


def pages(ground: Ground, url: str, **params: Any) -> Iterator[dict[str, Any]]:
    after = ""
    while True:
        answer = ground.http.get(url, params={**params, "after": after})
        assert answer.status_code == 200, answer.text
        yield from answer.json()[params.get("key", "entries")]
        if not (after := answer.json()["next"]):
            return


def names_in(format: str, data: bytes) -> set[str]:
    if format == "zip":
        with zipfile.ZipFile(io.BytesIO(data)) as zipped:
            return {name.rstrip("/") for name in zipped.namelist()}
    if format == "tar.zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        return {info.name for info in archive}


@pytest.mark.parametrize("wide", [WIDE, pytest.param(100_000, marks=pytest.mark.full)])
def test_behind_every_verb(ground: Ground, wide: int) -> None:
    name = f"still{wide}"
    id, base = ground.begin(name, "sleep", "3600")
    execution = ground.client.get(name)
    entries = furnish(base, ground.outside, wide=wide)
    at = f"/v1/executions/{id}/files"
    http = ground.http
    with ground.memory(MEMORY_BYTES):
        # read
        for path in LINKS_OUT:
            clear(http.get(f"{at}/{path}"), 404, 409, 422)
            assert http.head(f"{at}/{path}").status_code in (404, 409, 422)
        for path in NO_FILES[:-2]:
            clear(http.get(f"{at}/{path}"), 409)
        assert http.get(f"{at}/suid").content == b"#!/bin/sh\n"
        tail = http.get(f"{at}/huge", headers={"range": "bytes=-10"})
        assert (tail.status_code, tail.content) == (206, bytes(10))
        assert tail.headers["content-range"] == f"bytes {TERABYTE - 10}-{TERABYTE - 1}/{TERABYTE}"
        with http.stream("GET", f"{at}/huge") as answer:  # who asks for all of it gets it, piece by piece
            assert sum(map(len, itertools.islice(answer.iter_raw(), 20))) > 0

        # list and search
        listed = list(pages(ground, f"{at}/", recursive=True, limit=5000))
        assert len(listed) == entries
        exact = {entry["path"]: entry for entry in listed}
        assert exact["zero"]["kind"] == exact["sock"]["kind"] == exact["fifo"]["kind"] == "other"
        assert exact["abs"]["target"] == str(ground.outside / "secret") and "caf\ufffd" in exact
        assert {"new\nline", "esc\x1b[31m\r", "..."} <= set(exact)
        for folder in ("absdir", "updir", "dotdot/dotdot"):
            clear(
                http.get(f"{at}/{folder}/", params={"recursive": True}), 404, 409, 422
            ) if folder == "absdir" else None
            seen = http.get(f"{at}/{folder}/", params={"recursive": True, "limit": 10_000})
            assert SECRET not in seen.content and "secret" not in {
                Path(one["path"]).name for one in seen.json().get("entries", ())
            }
        wide_ones = pages(ground, f"{at}/wide", limit=1000)
        assert sum(1 for _ in wide_ones) == wide
        slow = "*a" * 60 + "*b"
        assert list(pages(ground, f"{at}/", glob=f"**/{slow}")) == []
        found = list(pages(ground, f"/v1/executions/{id}/search", name="f00001?"))
        assert [one["path"] for one in found] == [f"wide/f00001{digit}" for digit in range(10)]
        latin = http.get(f"/v1/executions/{id}/search?name=f%E9").json()["entries"]
        assert [one["path_b64"] for one in latin] == ["Y2Fm6Q=="], "a name that is not UTF-8 is found by its bytes"

        # write, make, move, remove
        for path in ("absdir/new", "updir/new", "loop/new", "zero/new", "fifo/new", "magic/new"):
            clear(http.put(f"{at}/{path}", content=b"x"), 404, 409, 422)
            clear(http.post(f"{at}/{path}/y", params={"op": "mkdir"}), 404, 409, 422)
            clear(http.post(f"{at}/plain", params={"op": "move", "to": path}), 404, 409, 422)
            clear(http.put(f"{at}/{path}", params={"unpack": "tar"}, content=member("x") + END), 404, 409, 422)
            assert http.delete(f"{at}/{path}").status_code in (404, 409, 422)
        for path in ("abs", "tofifo", "zero"):  # a name is replaced, what it leads to is not written
            assert http.put(f"{at}/{path}", content=b"mine").status_code == 201
            assert (base / path).read_bytes() == b"mine" and not (base / path).is_symlink()
        assert http.post(f"{at}/sock", params={"op": "move", "to": "caf\xe9/sock"}).status_code == 200
        assert http.delete(f"{at}/caf%C3%A9", params={"recursive": True}).status_code == 204
        assert http.delete(f"{at}/absdir").status_code == 204
        assert http.delete(f"{at}/deep", params={"recursive": True}).status_code == 204

        # upload: hostile archives and bombs
        for what in HOSTILE:
            if what not in ("no archive", "empty", "cut"):
                answer = http.put(f"{at}/new", params={"unpack": "tar"}, content=HOSTILE[what] + END)
                clear(answer, 422)
                assert answer.json()["field"] == "archive"
        for make in HOSTILE_ZIPS.values():
            clear(http.put(f"{at}/new", params={"unpack": "zip"}, content=make()), 422)
        for format in ("tar.zst", "zip"):
            answer = http.put(f"{at}/new", params={"unpack": format}, content=zeros(format, 512 << 20))
            clear(answer, 413)
            assert answer.json()["unpacked_bytes"] < 260 << 20
        assert http.get(f"{at}/new", params={"stat": True}).status_code == 404

        # download
        for format in ("tar", "tar.zst", "zip"):
            data = http.get(f"{at}/", params={"archive": format}).content
            assert SECRET not in data and b"root:" not in data
            inside = names_in(format, data)
            assert len([one for one in inside if one.startswith("wide/")]) == wide
            assert not {"fifo", "disk", "huge"} & inside and ".carrel-left-out.txt" in inside
            assert not any(one.startswith("/") or ".." in one.split("/") for one in inside)

        # snapshot, diff, fork
        first = execution.snapshot()
        os.truncate(base / "huge", TERABYTE - 1)
        os.truncate(base / "huge", TERABYTE)  # the same size, another time: nobody reads a terabyte for an answer
        (base / "plain").write_bytes(b"changed\n")
        Path(os.fsdecode(os.fsencode(base) + b"/caf\xe9")).write_bytes(b"changed\n")
        diff = f"/v1/executions/{id}/diff"
        changes = {one["path"]: one for one in pages(ground, diff, key="changes", patch=True)}
        assert set(changes) - {"disk", "fifo"} == {"caf\ufffd", "hard", "huge", "plain"}
        assert changes["plain"]["patch"] == "@@ -1,1 +1,1 @@\n-own\n+changed\n"
        clear(http.get(diff, params={"path": "../.."}), 422)
        then = http.get(f"{at}/plain", params={"snapshot": first.id})
        assert then.content == b"own\n"
        clear(http.get(f"{at}/up", params={"snapshot": first.id}), 404, 409, 422)
        clear(http.put(f"{at}/plain", params={"snapshot": first.id}, content=b"x"), 409, 422)
        (fork,) = execution.fork(snapshot=first.id)
        until(lambda: fork.refresh().state == "RUNNING", "the fork runs")
        assert http.get(f"/v1/executions/{fork.id}/files/plain").content == b"own\n"
        clear(http.get(f"/v1/executions/{fork.id}/files/up"), 404, 409, 422)
        ground.untouched(ground.workspace(fork.id))

        # watch
        with http.stream("GET", f"{at}/", params={"watch": True}) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "event: ready"
            (base / "up").unlink()
            (base / "two\nlines").write_bytes(b"x")
            wanted = {'"removed"', '"two\\nlines"'}
            while wanted:
                line = next(lines)
                wanted = {one for one in wanted if one not in line.replace(": ", ":").replace(":", ": ")}
        clear(http.get(f"{at}/updir", params={"watch": True, "snapshot": first.id}), 422)
    ground.untouched(base)
    fork.delete(force=True)
    execution.delete(force=True)


ASKED: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("GET", "spot/secret", {}),
    ("GET", "file", {}),
    ("GET", "plain", {}),
    ("GET", "filelink", {}),
    ("GET", "", {"recursive": "true"}),
    ("GET", "spot", {}),
    ("GET", "", {"glob": "**/s*"}),
    ("GET", "", {"archive": "tar"}),
    ("GET", "spot", {"archive": "tar.zst"}),
    ("GET", "uplink", {"archive": "zip"}),
    ("PUT", "spot/planted", {}),
    ("PUT", "link/deep/planted", {}),
    ("PUT", "spot", {"unpack": "tar"}),
    ("PUT", "uplink/sub", {"unpack": "tar"}),
    ("POST", "spot/made", {"op": "mkdir"}),
    ("POST", "spot/planted", {"op": "move", "to": "uplink/moved", "overwrite": "true"}),
    ("DELETE", "link/secret", {}),
    ("DELETE", "uplink/secret", {}),
    ("DELETE", "spot/made", {"recursive": "true"}),
)


@pytest.mark.parametrize("for_s", [pytest.param(3, id="3 s"), pytest.param(60, id="60 s", marks=pytest.mark.full)])
def test_a_racing_renamer_behind_every_verb(ground: Ground, for_s: int) -> None:
    """An agent exchanges folders, files, links out and FIFOs while every verb is used on them, again and again."""
    name = f"race{for_s}"
    id, base = ground.begin(name, "python3", "-c", RENAMER, str(ground.outside))
    execution = ground.client.get(name)
    until(lambda: (base / "fifo").exists() or (base / "plain").exists(), "the tree is there")
    at = f"/v1/executions/{id}"
    packed = member("archived", content=b"x") + END
    rounds, statuses = 0, set()
    with ground.memory(MEMORY_BYTES):
        end = time.monotonic() + for_s
        while time.monotonic() < end or not rounds:
            for verb, path, params in ASKED:
                content = packed if "unpack" in params else b"mine" if verb == "PUT" else None
                answer = ground.http.request(verb, f"{at}/files/{quote(path)}", params=params, content=content)
                assert answer.status_code < 500, (verb, path, params, answer.status_code, answer.text)
                assert SECRET not in answer.content
                statuses.add(answer.status_code)
            with ground.http.stream("GET", f"{at}/files/spot", params={"watch": True}) as watch:
                if watch.status_code == 200:
                    assert next(watch.iter_lines()) == "event: ready"
            for one in ("/search?name=secret", "/diff?patch=true"):
                answer = ground.http.get(at + one)
                assert answer.status_code in (200, 404) and SECRET not in answer.content
            if rounds % 20 == 0:
                snapshot = execution.snapshot()
                kept = ground.http.get(f"{at}/files/", params={"archive": "tar", "snapshot": snapshot.id})
                assert kept.status_code == 200 and SECRET not in kept.content
            rounds += 1
    print(f"{rounds} rounds, statuses {sorted(statuses)}")
    assert execution.refresh().state == "RUNNING"
    (fork,) = execution.fork(count=1)
    until(lambda: fork.refresh().state == "RUNNING", "the fork runs")
    ground.untouched(base)
    ground.untouched(ground.workspace(fork.id))
    fork.delete(force=True)
    execution.delete(force=True)
