"""What is sent again and what is not; errors are the server's own; both skins say the same."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import errors
from orchestrator.client import (
    AsyncClient,
    AsyncExecution,
    Client,
    Execution,
    Patience,
    aio_files,
    file_requests,
    requests,
    sync_files,
)
from orchestrator.client.address import parse
from orchestrator.client.answers import problem
from orchestrator.client.exchange import Request, Response
from orchestrator.wire.problem import problem_of
from tests.client.peer import Answer, Asked, in_turn, peer

EAGER = Patience(limit_s=20, first_s=0.001, most_s=0.002)
JSON = {"content-type": "application/json"}
RECORD = {
    "id": "exe_x",
    "tenant": "default",
    "state": "QUEUED",
    "harness": "bash",
    "resources": {"cpus": 1, "memory_bytes": 1, "pids": 1, "nofile": 1, "tmp_bytes": 1, "disk_bytes": 0},
    "limits": {"grace_s": 10},
    "retry": {"max_failures": 3, "on_lost": "auto", "backoff_s": 1, "backoff_max_s": 60},
    "cursor": "0000000000000001_0000000000000001",
    "created_at": "2025-01-31T08:15:00.123Z",
}
OK = Answer(201, JSON, json.dumps(RECORD).encode())
LOST = Answer(201, JSON, OK.body, cut_at=60)
BUSY = Answer(503, {**JSON, "retry-after": "0"}, b'{"code":"store_unavailable","detail":"away"}')


def client_of(url: str) -> AsyncClient:
    return AsyncClient(url, "token", patience=EAGER)


async def test_a_submit_whose_answer_was_lost_is_sent_again_with_its_key() -> None:
    async with peer(in_turn([LOST, BUSY, OK])) as served, client_of(served.url) as client:
        execution = await client.submit(task="true")
    keys = [asked.headers["idempotency-key"] for asked in served.asked]
    assert execution.id == "exe_x"
    assert len(keys) == 3 and len(set(keys)) == 1 and len(keys[0]) == 32
    assert len({asked.body for asked in served.asked}) == 1


async def test_two_submits_have_two_keys() -> None:
    async with peer(in_turn([OK, OK])) as served, client_of(served.url) as client:
        await client.submit(task="true")
        await client.submit(task="true")
    assert len({asked.headers["idempotency-key"] for asked in served.asked}) == 2


async def test_a_message_keeps_its_id_over_retries() -> None:
    receipt = Answer(202, JSON, b'{"id":"m","n":1,"repeated":true,"seq":0}')
    async with peer(in_turn([LOST, receipt])) as served, client_of(served.url) as client:
        got = await client.execution("exe_x").send("hello")
    assert got.repeated
    ids = [json.loads(asked.body)["id"] for asked in served.asked]
    assert len(ids) == 2 and len(set(ids)) == 1


@pytest.mark.parametrize("verb", ["interrupt", "cancel", "pause", "resume", "hibernate"])
async def test_wishes_keep_their_id_over_retries(verb: str) -> None:
    async with peer(in_turn([LOST, BUSY, OK])) as served, client_of(served.url) as client:
        await getattr(client.execution("exe_x"), verb)()
    assert len({json.loads(asked.body)["id"] for asked in served.asked}) == 1
    assert len(served.asked) == 3


async def test_a_command_is_never_sent_twice() -> None:
    async with peer(in_turn([LOST])) as served, client_of(served.url) as client:
        with pytest.raises(errors.Unavailable, match="whether it was done is not known"):
            await client.execution("exe_x").exec(["touch", "x"])
    assert len(served.asked) == 1


async def test_a_delete_that_finds_nothing_on_its_second_try_was_done_by_the_first() -> None:
    gone = Answer(404, JSON, json.dumps(problem_of(errors.NotFound("no"), status=404, title="t")).encode())
    async with peer(in_turn([Answer(204, cut_at=5), gone])) as served, client_of(served.url) as client:
        await client.execution("exe_x").delete()
    async with peer(in_turn([gone])) as served, client_of(served.url) as client:
        with pytest.raises(errors.NotFound):
            await client.execution("exe_x").delete()


async def test_nothing_listens() -> None:
    with Client("http://127.0.0.1:9", patience=Patience(limit_s=0)) as client:
        with pytest.raises(errors.Unavailable, match="no answer from") as away:
            client.health()
        assert "carrel serve" in away.value.data["remedy"]


async def test_something_else_listens() -> None:
    page = Answer(200, {"content-type": "text/html"}, b"<html>hello</html>")
    async with peer(in_turn([page])) as served, client_of(served.url) as client:
        with pytest.raises(errors.CarrelError, match="not one of a Carrel server"):
            await client.get("exe_x")


def _tree(root: type[errors.CarrelError]) -> list[type[errors.CarrelError]]:
    ours = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    return [root, *(kind for child in ours for kind in _tree(child))]


@pytest.mark.parametrize("kind", _tree(errors.CarrelError))
def test_every_error_comes_back_as_itself(kind: type[errors.CarrelError]) -> None:
    if issubclass(kind, errors.BadInput):
        sent: errors.CarrelError = kind("no", field="env", limit="512", remedy="fewer")
    elif kind is errors.Resend:
        sent = errors.Resend("no", src=7)
    else:
        sent = kind("no", earliest=7)
    shape = problem_of(sent, status=418, title="t")
    got = problem(Response(418, {"content-type": "application/problem+json"}, json.dumps(shape).encode()))
    assert (type(got), got.message, got.data) == (kind, sent.message, sent.data)


async def test_a_blob_that_is_there_is_not_sent() -> None:
    async with peer(in_turn([Answer(200)])) as served, client_of(served.url) as client:
        entry = await client.upload(b"hello", "a.txt")
    assert [asked.method for asked in served.asked] == ["HEAD"]
    assert entry["path"] == "a.txt" and entry["mode"] == "0644"
    assert served.asked[0].path.endswith(entry["sha256"])


def _range_of(content: bytes, cuts: list[int]) -> tuple[list[str], Callable[[Asked], Answer]]:
    """A peer that serves `content` by ranges and cuts the first connections."""
    offsets: list[str] = []

    def answer(asked: Asked) -> Answer:
        offsets.append(asked.headers.get("range", ""))
        begin = int(offsets[-1].removeprefix("bytes=").removesuffix("-") or 0)
        headers = {"etag": '"v1"', "content-type": "application/octet-stream"}
        whole = Answer(206 if begin else 200, headers, content[begin:])
        head = len(whole.raw()) - len(whole.body)
        return Answer(whole.status, headers, whole.body, cut_at=head + cuts.pop(0) if cuts else None)

    return offsets, answer


async def test_a_download_goes_on_at_the_byte_where_it_broke(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    offsets, answer = _range_of(content, [1000, 0, 2500])
    async with peer(answer) as served, client_of(served.url) as client:
        got = await client.execution("exe_x").files.download("a b/ü.bin", tmp_path / "out")
    assert got.read_bytes() == content
    assert offsets[0] == "" and len(offsets) == 4 and offsets[-1] != ""
    assert served.asked[0].path == "/v1/executions/exe_x/files/a%20b/%C3%BC.bin"
    assert {asked.headers["if-range"] for asked in served.asked if "range" in asked.headers} <= {'"v1"'}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


async def test_a_file_that_changed_while_it_was_read_is_an_error(tmp_path: Path) -> None:
    first = Answer(200, {"etag": '"v1"'}, b"a" * 5000)
    head = len(first.raw()) - 5000
    answers = [Answer(200, {"etag": '"v1"'}, b"a" * 5000, cut_at=head + 1000), Answer(200, {"etag": '"v2"'}, b"b" * 9)]
    seen = b""
    async with peer(in_turn(answers)) as served, client_of(served.url) as client:
        with pytest.raises((errors.Conflict, errors.Unavailable)):
            async for piece in client.execution("exe_x").files.chunks("a"):
                seen += piece
    assert set(seen) <= {ord("a")}


@pytest.mark.parametrize(
    ("blocking", "looping"),
    [
        (Client, AsyncClient),
        (Execution, AsyncExecution),
        (sync_files.Files, aio_files.AsyncFiles),
        (sync_files.Artifacts, aio_files.AsyncArtifacts),
    ],
)
def test_both_skins_have_the_same_surface(blocking: type, looping: type) -> None:
    def surface(kind: type) -> dict[str, list[str]]:
        return {
            name: [str(parameter) for parameter in inspect.signature(member).parameters.values()]
            for name, member in vars(kind).items()
            if not name.startswith("_") and callable(member)
        }

    assert surface(blocking) == surface(looping)


@pytest.mark.parametrize(
    ("url", "base", "socket"),
    [
        ("http://127.0.0.1:8374/", "http://127.0.0.1:8374", None),
        ("https://carrel.example/here", "https://carrel.example/here", None),
        ("http+unix:///run/carrel.sock", "http://localhost", "/run/carrel.sock"),
        ("http+unix://%2Frun%2Fcarrel.sock", "http://localhost", "/run/carrel.sock"),
    ],
)
def test_addresses(url: str, base: str, socket: str | None) -> None:
    got = parse(url)
    assert (got.base, got.socket) == (base, socket)


@pytest.mark.parametrize(
    "url", ["", "localhost:80", "ftp://x", "http://", "http://u:p@x", "http://x:99999", "http+unix://x"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(errors.BadInput) as bad:
        parse(url)
    assert bad.value.field == "url" and bad.value.data["remedy"]


def test_every_request_that_changes_something_has_a_key_or_says_that_it_must_not_be_repeated() -> None:
    made: list[Request[Any]] = [
        requests.submit({"task": "x"}),
        requests.message("e", "x"),
        requests.wish("e", "cancel"),
        requests.resources("e", cpus=1),
        requests.exec_result("e", {"command": ["x"]}),
        requests.exec_stream("e", {"command": ["x"]}),
        file_requests.blob(iter([b"x"])),
        file_requests.write("e", "x", iter([b"x"])),
    ]
    for request in made:
        keyed = "idempotency-key" in request.headers or (
            isinstance(request.body, bytes) and request.body and "id" in json.loads(request.body)
        )
        assert request.repeatable == bool(keyed), request
