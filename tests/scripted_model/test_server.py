"""The scripted model as a server: its key, its faults, what it counts and tells, and the program around it."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from scripted_model import BadScript, ScriptedModel, load, read
from tests.place import until
from tests.scripted_model.peer import APIS, CHAT, MESSAGES, ask, request

KEY = "sk-canary-7f3a91"


@pytest.mark.parametrize("api", APIS)
def test_with_a_key_nothing_is_answered_without_it_and_it_is_never_told(api: str) -> None:
    with ScriptedModel(read([{"text": "ok"}]), key=KEY) as model:
        answers = [
            ask(model.url, "POST", api, request(api, "a")),
            ask(model.url, "POST", api, request(api, "a"), x_api_key="wrong"),
            ask(model.url, "POST", api, request(api, "a"), authorization="Bearer wrong"),
            ask(model.url, "GET", "/v1/models"),
        ]
        assert [got.status for got in answers] == [401] * 4
        good = [
            ask(model.url, "POST", api, request(api, "a"), x_api_key=KEY),
            ask(model.url, "POST", api, request(api, "a"), authorization=f"Bearer {KEY}"),
            ask(model.url, "GET", "/v1/models", authorization=f"Bearer {KEY}"),
        ]
        assert [got.status for got in good] == [200] * 3
        told = [ask(model.url, "GET", "/_requests"), ask(model.url, "GET", "/_stats")]
    assert not [got for got in (*answers, *good, *told) if KEY.encode() in got.body]
    assert told[1].json["unread"] == 4


@pytest.mark.parametrize("api", APIS)
def test_a_status_comes_as_often_as_it_says_and_in_the_providers_shape(api: str) -> None:
    fault = {"status": 429, "retry_after_s": 2.5, "times": 2}
    with ScriptedModel(read([{"text": "ok", "fault": fault}])) as model:
        answers = [ask(model.url, "POST", api, request(api, "a")) for _ in range(3)]
        stats = model.counts.stats()
    assert [got.status for got in answers] == [429, 429, 200]
    assert answers[0].headers["retry-after"] == "2.5"
    expected = {"rate_limit_error"} if api == MESSAGES else {"rate_limit_exceeded"}
    assert {answers[0].json["error"]["type"]} == expected
    assert (stats["begun"], stats["refused"], stats["whole"]) == (3, 2, 1)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cut_has_no_end_and_the_next_is_whole(api: str, stream: bool) -> None:
    after = 3 if stream else 1
    with ScriptedModel(read([{"text": "word " * 50, "fault": {"cut_after_chunks": after}}])) as model:
        with pytest.raises(http.client.IncompleteRead) as cut:
            ask(model.url, "POST", api, request(api, "a", stream=stream))
        again = ask(model.url, "POST", api, request(api, "a", stream=stream))
        stats = model.counts.stats()
    assert again.status == 200 and again.body.startswith(cut.value.partial) and len(again.body) > len(cut.value.partial)
    assert (stats["begun"], stats["cut"], stats["whole"]) == (2, 1, 1)
    assert list(stats["by_digest"].values()) == [
        {"script": "script", "turn": 0, "begun": 2, "whole": 1, "cut": 1, "abandoned": 0, "refused": 0}
    ]


@pytest.mark.parametrize("api", APIS)
def test_the_providers_own_error_in_a_stream(api: str) -> None:
    with ScriptedModel(read([{"text": "word " * 50, "fault": {"error_after_chunks": 2}}])) as model:
        events = ask(model.url, "POST", api, request(api, "a", stream=True)).events
    assert len(events) == 3
    assert "error" in events[-1] or events[-1]["response"]["error"]["code"] == "server_error"


@pytest.mark.parametrize("fault", [{"hang": True}, {"hang_after_chunks": 2}])
def test_what_hangs_hangs_until_the_client_goes_or_the_server_closes(fault: dict[str, Any]) -> None:
    with ScriptedModel(read([{"text": "hello", "fault": fault | {"times": 2}}])) as model:
        lines = [
            socket.create_connection((str(urlsplit(model.url).hostname), urlsplit(model.url).port or 0)) for _ in "ab"
        ]
        body = json.dumps(request(MESSAGES, "a", stream=True)).encode()
        for line in lines:
            line.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: model.counts.stats()["begun"] == 2, "both are heard")
        lines[0].close()
        until(lambda: model.counts.stats()["cut"] == 1, "it is seen that one went")
    with lines[1]:
        while lines[1].recv(65536):
            pass  # the end of it comes, because the server closed


def test_a_client_that_goes_in_the_middle_is_abandoned_not_whole() -> None:
    with ScriptedModel(read([{"text": "x" * 100_000, "piece_chars": 1, "chunk_s": 0.0001}])) as model:
        line = socket.create_connection((str(urlsplit(model.url).hostname), urlsplit(model.url).port or 0))
        body = json.dumps(request(MESSAGES, "a", stream=True) | {"max_tokens": 100_000}).encode()
        line.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        assert line.recv(100)
        line.close()
        until(lambda: model.counts.stats()["open"] == 0, "it is seen that the client went")
        stats = model.counts.stats()
    assert (stats["begun"], stats["abandoned"], stats["whole"]) == (1, 1, 0)


def test_what_was_asked_is_told_with_its_secrets_hashed_and_forgotten_at_a_reset() -> None:
    with ScriptedModel(read([{"text": "ok"}])) as model:
        for text in ("one", "two"):
            ask(model.url, "POST", CHAT, request(CHAT, text), authorization="Bearer secret-1", x_other="kept")
        everything = ask(model.url, "GET", "/_requests").json
        later = ask(model.url, "GET", "/_requests?after=1").json
        assert ask(model.url, "POST", "/_reset").status == 204
        assert ask(model.url, "GET", "/_requests").json == []
        assert ask(model.url, "GET", "/_stats").json["begun"] == 0
    assert [one["body"]["messages"][-1]["content"] for one in everything] == ["one", "two"]
    assert later == everything[1:]
    assert everything[0]["headers"]["x-other"] == "kept"
    assert everything[0]["headers"]["authorization"].startswith("sha256:")


def test_one_request_has_one_digest_streamed_or_not() -> None:
    with ScriptedModel(read([{"text": "ok"}])) as model:
        ask(model.url, "POST", CHAT, request(CHAT, "a", stream=True) | {"user": "u", "metadata": {"a": "b"}})
        ask(model.url, "POST", CHAT, request(CHAT, "a"))
        ask(model.url, "POST", CHAT, request(CHAT, "b"))
        counted = [tally["whole"] for tally in model.counts.stats()["by_digest"].values()]
    assert counted == [2, 1]


def test_bodies_come_chunked_or_packed() -> None:
    body = json.dumps(request(CHAT, "a")).encode()
    with ScriptedModel(read([{"text": "ok"}])) as model:
        packed = ask(model.url, "POST", CHAT, gzip.compress(body), content_encoding="gzip")
        connection = http.client.HTTPConnection(urlsplit(model.url).netloc)
        connection.request("POST", CHAT, iter([body[:10], body[10:]]), encode_chunked=True)
        with connection.getresponse() as answer:
            chunked = answer.status
        connection.close()
        strange = ask(model.url, "POST", CHAT, body, content_encoding="br")
    assert (packed.status, chunked, strange.status) == (200, 200, 400)


def test_one_connection_carries_many_exchanges_and_many_connections_at_once() -> None:
    with ScriptedModel(read([{"text": "ok", "chunk_s": 0.001}])) as model:

        def several() -> None:
            connection = http.client.HTTPConnection(urlsplit(model.url).netloc)
            for stream in (True, False, True):
                connection.request("POST", CHAT, json.dumps(request(CHAT, "a", stream=stream)))
                connection.getresponse().read()
            connection.close()

        threads = [threading.Thread(target=several) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert model.counts.stats()["whole"] == 24


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("HEAD", "/", 200), ("HEAD", "/v1", 404), ("GET", "/", 200), ("GET", "/etc/passwd", 404), ("POST", "/v1/x", 404)],
)
def test_other_routes(method: str, path: str, status: int) -> None:
    with ScriptedModel(read([])) as model:
        assert ask(model.url, method, path, b"{}" if method == "POST" else None).status == status


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"{}", b'{"model": "m"}', b'{"model": "m", "messages": 1}'])
def test_a_bad_request_is_refused_in_the_providers_shape(api: str, body: bytes) -> None:
    with ScriptedModel(read([{"text": "ok"}])) as model:
        got = ask(model.url, "POST", api, body)
    assert (got.status, got.json["error"]["type"]) == (400, "invalid_request_error")


def test_models_in_both_shapes() -> None:
    with ScriptedModel(read([])) as model:
        openai = ask(model.url, "GET", "/v1/models").json
        anthropic = ask(model.url, "GET", "/v1/models", anthropic_version="2023-06-01").json
        one = ask(model.url, "GET", "/v1/models/gpt%2Fx").json
    assert (openai["object"], openai["data"][0]["object"]) == ("list", "model")
    assert (anthropic["has_more"], anthropic["data"][0]["type"]) == (False, "model")
    assert one["id"] == "gpt/x"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (3, "an object with `turns`"),
        ({"turns": 3}, "turns: 3 is not a list of turns"),
        ({"turns": [{"txt": "x"}]}, "turns[0]: 'txt' means nothing here"),
        ({"turns": [{"run": 3}]}, "turns[0].run: 3 is not a shell command"),
        ({"turns": [{}, {"match": "("}]}, "turns[1].match: not a regular expression"),
        ({"turns": [{"chunk_s": "soon"}]}, 'turns[0].chunk_s: "soon" is not seconds'),
        ({"turns": [{"calls": [{"arguments": {}}]}]}, "turns[0].calls[0]"),
        ({"turns": [{"fault": {"status": 200}}]}, "turns[0].fault.status"),
        ({"turns": [{"fault": {"times": 0}}]}, "turns[0].fault.times"),
        ({"turns": [{"usage": {"tokens": 3}}]}, "'tokens' means nothing here"),
        ({"scripts": {}}, "an object of name: script"),
        ({"scripts": {"a": []}, "default": "b"}, "one of a"),
        ({"name": "a b", "turns": []}, "a name of 1 to 64"),
    ],
)
def test_a_wrong_script_is_told_with_its_place(script: object, says: str) -> None:
    with pytest.raises(BadScript) as wrong:
        read(script)
    assert says in str(wrong.value)


def test_files(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('[{"text": "1"}]')
    (tmp_path / "two.json").write_text('{"scripts": {"a": [], "b": []}, "default": "b"}')
    (tmp_path / "bad.json").write_text("{")
    assert load(tmp_path / "one.json").default == "one"
    both = load(tmp_path / "one.json", tmp_path / "two.json")
    assert (sorted(both.by_name), both.default) == (["a", "b", "one"], "b")
    for files in ([], [tmp_path / "bad.json"], [tmp_path / "none.json"], [tmp_path / "one.json"] * 2):
        with pytest.raises(BadScript):
            load(*files)


def test_the_program_says_where_it_is_and_ends_when_told(tmp_path: Path) -> None:
    script = tmp_path / "hello.json"
    script.write_text('[{"text": "hello"}]')
    command = [sys.executable, "-m", "scripted_model", "--script", str(script), "--key", KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | _PATH) as program:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        assert ask(url, "POST", CHAT, request(CHAT, "a"), x_api_key=KEY).status == 200
        program.send_signal(signal.SIGTERM)
        assert program.wait() == 0
    wrong = subprocess.run(
        [*command[:3], "--script", "/nowhere"], capture_output=True, text=True, env=os.environ | _PATH
    )
    assert wrong.returncode == 2 and "/nowhere" in wrong.stderr


_PATH = {"PYTHONPATH": str(Path(__file__).parents[2] / "agent-harness")}
