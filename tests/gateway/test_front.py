"""What a sandbox's requests meet: the token, the table of routes, limits, refusals in the shape of who was asked."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.clock import SystemClock
from orchestrator.gateway.asking import model_request
from orchestrator.gateway.egress import EgressProxies
from orchestrator.gateway.pace import Pace
from orchestrator.gateway.refusals import Refused
from orchestrator.gateway.room import Holding, Room
from orchestrator.gateway.routes import Kind, route
from orchestrator.gateway.token import load_secret, shows, token_of
from orchestrator.gateway.web_reach import reaching
from orchestrator.models import ModelApi, ModelPolicy, Provider
from tests.gateway.providers import Asking, answering, provider, whole
from tests.gateway.rig import KEY, PATHS, SECRET, Rig, asked, client_of, request_bytes, said, until

M, C, R = ModelApi.MESSAGES, ModelApi.CHAT, ModelApi.RESPONSES


# ---- who is let in


@pytest.mark.parametrize("path", [*PATHS.values(), "/v1/models", "/carrel/v1/spend", "/carrel/v1/intents?key=k"])
async def test_40_without_this_executions_token_nothing_is_answered(rig: Rig, path: str) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        method = "POST" if path in PATHS.values() else "GET"
        for token in ("", token_of(SECRET, "exe_b"), "cgt_", KEY):
            async with client_of(reached.at, token) as client:
                answer = await client.request(method, path, json={} if method == "POST" else None)
                assert answer.status_code == 401
                assert "CARREL_GATEWAY_TOKEN" in answer.json()["error"]["message"]
        assert not there.asked


async def test_the_token_is_taken_from_either_header(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        token = token_of(SECRET, "exe_a")
        for headers in ({"x-api-key": token}, {"authorization": f"bearer {token}"}):
            async with client_of(reached.at, "") as client:
                assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_38_without_the_lease_every_request_is_refused(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        rig.held = False
        assert (await reached.ask(M)).status_code == 503
        assert (await reached.client.get("/v1/models")).status_code == 503
        assert b" 503 " in await reached.raw(b"CONNECT a.example:443 HTTP/1.1\r\nhost: a.example\r\n\r\n")
        assert not there.asked


# ---- where to


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v1/files"),
        ("POST", "/v1/messages/batches"),
        ("GET", "/v1/organizations/users"),
        ("POST", "/v1/messages/../files"),
        ("POST", "/v1/%6dessages"),
        ("POST", "//v1/messages"),
        ("POST", "/v1/messages/"),
        ("POST", "/V1/messages"),
        ("POST", "/v1/messages;x"),
        ("POST", "/anthropic/openai/v1/messages"),
        ("DELETE", "/v1/models/cheap-1/x?y"),
        ("GET", "/"),
        ("GET", "/carrel/v1/admin"),
        ("OPTIONS", "*"),
    ],
)
async def test_41_a_path_outside_the_table_goes_nowhere(rig: Rig, method: str, target: str) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        token = token_of(SECRET, "exe_a")
        answer = await reached.raw(
            f"{method} {target} HTTP/1.1\r\nhost: x\r\nx-api-key: {token}\r\ncontent-length: 2\r\n\r\n{{}}".encode()
        )
        assert answer.split(b" ")[1] in (b"403", b"405")
        assert there.connections == 0


@given(st.text(alphabet="/v1mesagthcp%.2e;?#\\ _", max_size=30), st.sampled_from(["GET", "POST", "PUT", "HEAD"]))
def test_what_is_routed_is_what_the_table_says(tail: str, method: str) -> None:
    try:
        found = route(method, "/" + tail)
    except Refused as refused:
        assert refused.status in (403, 405)
    else:
        assert found.path in ("/v1/messages", "/v1/models", "/")


@pytest.mark.parametrize("prefix", ["", "/anthropic", "/openai", "http://127.0.0.1:7411", "http://localhost:7411"])
def test_a_request_for_us_is_one_however_it_came(prefix: str) -> None:
    found = route("POST", f"{prefix}/v1/messages?beta=true&x=1")
    assert (found.kind, found.path, found.asked("beta")) == (Kind.MODEL, "/v1/messages", "true")
    assert route("GET", "http://other.example:7411/v1/messages").kind is Kind.FORWARD


async def test_the_flag_behind_the_path_goes_on_and_nothing_else(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        await reached.client.post("/v1/messages?beta=true&key=steal", json=asked(M))
        assert there.asked[0].head.target == b"/v1/messages?beta=true"


async def test_a_program_that_looks_whether_somebody_is_there(rig: Rig) -> None:
    reached = await rig.gateway("http://127.0.0.1:9")
    assert (await reached.client.head("/")).status_code == 200


async def test_what_a_provider_gets_is_what_was_checked(rig: Rig) -> None:
    """A name given twice means one thing to us and could mean another to a provider."""
    raw = b'{"model":"dear-1","messages":[],"tools":[{"type":"web_search_1"}],"tools":[],"model":"cheap-1"}'
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        assert (await reached.client.post("/v1/messages", content=raw)).status_code == 200
        assert there.asked[0].body.count(b'"model"') == 1
        assert json.loads(there.asked[0].body) == {"model": "cheap-1", "messages": [], "tools": []}


# ---- limits


async def test_a_request_that_is_too_large_is_refused_and_not_read_on(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(rig.policy(there.url, request_bytes=1000))
        answer = await reached.ask(M, "x" * 1000)
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "request_too_large"
        assert answer.json()["error"]["limit"] == "1000 bytes"
        assert not there.asked
        [refused] = rig.told
        assert (refused.type, refused.data["status"]) == ("model.refused", 413)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 150_000 + b"\r\n\r\n", b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /v1/messages HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", b"501"),
        (b"GET /\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_request_gets_an_error(rig: Rig, raw: bytes, status: bytes) -> None:
    reached = await rig.gateway("http://127.0.0.1:9")
    assert (await reached.raw(raw)).split(b" ")[1] == status


async def test_so_many_calls_at_once_and_the_others_wait_their_turn(rig: Rig) -> None:
    go = asyncio.Event()
    most = 0
    now = 0

    async def slow(asking: Asking) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await go.wait()
        now -= 1
        await asking.answer(200, whole(M), "content-type: application/json")

    async with provider(slow) as there:
        reached = await rig.gateway(rig.policy(there.url, concurrency=2))
        asking = [asyncio.create_task(reached.ask(M, str(number))) for number in range(6)]
        await until(lambda: len(there.asked) == 2)
        assert (await reached.client.get("/v1/models")).status_code == 200  # only calls wait
        go.set()
        assert {answer.status_code for answer in await asyncio.gather(*asking)} == {200}
        assert most == 2


def test_requests_under_way_have_a_share_of_memory() -> None:
    worker = Room(100)
    one, two = Room(60, worker), Room(60, worker)
    first, second = Holding(one), Holding(two)
    first.add(60)
    with pytest.raises(Refused):
        first.add(1)
    with pytest.raises(Refused):
        second.add(50)
    second.add(40)
    first.release()
    first.release()
    second.release()
    assert (worker.held_bytes, one.held_bytes, two.held_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b"", "body"),
        (b"[]", "body"),
        (b"{", "body"),
        (b"[" * 200_000, "body"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "body"),
        (b'{"messages":[]}', "model"),
        (b'{"model":""}', "model"),
        (b'{"model":5}', "model"),
        (b'{"model":"' + b"m" * 300 + b'"}', "model"),
        (b'{"model":"cheap-1","stream":"yes"}', "stream"),
        (b'{"model":"cheap-1","background":true}', "background"),
        (b'{"model":"cheap-1","stream_options":[1]}', "stream_options"),
        (b"\xff\xfe{}", "body"),
    ],
)
async def test_a_bad_body_is_named(rig: Rig, raw: bytes, field: str) -> None:
    reached = await rig.gateway("http://127.0.0.1:9")
    answer = await reached.client.post("/v1/responses", content=raw)
    assert answer.status_code == 400
    assert answer.json()["error"]["field"] == field
    assert answer.json()["error"]["limit"]


async def test_a_key_of_ours_is_bounded(rig: Rig) -> None:
    reached = await rig.gateway("http://127.0.0.1:9")
    assert (await reached.ask(M, key="k" * 257)).json()["error"]["field"] == "Idempotency-Key"


def test_half_a_surrogate_pair_goes_through_as_it_was_written() -> None:
    request = model_request(M, "/v1/messages", b'{"model":"m","messages":[{"content":"\\ud83d x \\u00fc"}]}')
    assert json.loads(request.sent)["messages"][0]["content"] == "\ud83d x ü"


async def test_an_old_client_gets_its_answer_whole(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        raw = request_bytes(M, asked(M, stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        answer = await reached.raw(raw)
        assert b"content-length:" in answer.lower()
        assert b"transfer-encoding" not in answer.lower()
        assert b"message_stop" in answer


async def test_a_client_that_waits_to_be_told_to_go_on_is_told(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        raw = request_bytes(M, asked(M), "expect: 100-continue")
        head, _, body = raw.partition(b"\r\n\r\n")
        reader, writer = await reached.dial()
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        writer.write(body)
        assert b" 200 " in await reader.read()
        writer.close()


async def test_a_client_that_has_no_more_to_say_is_still_answered(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url)
        reader, writer = await reached.dial()
        writer.write(request_bytes(M, asked(M)))
        writer.write_eof()
        assert said(M, json.loads((await reader.read()).rpartition(b"\r\n\r\n")[2])) == "Hi."
        writer.close()


# ---- policy


async def test_a_model_that_is_not_this_tenants_is_refused_and_told(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        policy = rig.policy(there.url, allowed={"default": ("cheap-*",)})
        reached = await rig.gateway(policy)
        for _ in range(3):
            answer = await reached.ask(M, model="dear-1")
            assert answer.status_code == 403
            assert answer.json()["error"]["type"] == "permission_error"
            assert answer.json()["error"]["code"] == "model_forbidden"
            assert answer.json()["error"]["limit"] == "cheap-*"
        counted = await reached.client.post("/v1/messages/count_tokens", json=asked(M, model="dear-1"))
        assert counted.status_code == 403
        assert (await reached.ask(M)).status_code == 200
        assert len(there.asked) == 1
        first = rig.told[0]
        assert (first.type, first.data["model"], first.data["status"]) == ("model.refused", "dear-1", 403)
        assert len([entry for entry in rig.told if entry.data["api"] == str(M)]) == 1  # the same one once


async def test_a_model_nobody_serves_is_not_found(rig: Rig) -> None:
    policy = ModelPolicy(providers=(Provider("p", "http://127.0.0.1:9", (M,), models=("claude-*",)),))
    answer = await (await rig.gateway(policy)).ask(M)
    assert answer.status_code == 404
    assert "claude-*" in answer.json()["error"]["message"]


REACHING: list[tuple[ModelApi, dict[str, Any], str]] = [
    (M, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
    (M, {"tools": [{"name": "mine"}, {"type": "web_fetch_20250910", "name": "x"}]}, "web_fetch_20250910"),
    (M, {"tools": [{"type": "something_new"}]}, "something_new"),
    (M, {"mcp_servers": [{"type": "url", "url": "https://x.example"}]}, "mcp_servers"),
    (
        M,
        {"messages": [{"content": [{"type": "image", "source": {"type": "url", "url": "HTTPS://x.example/?leak"}}]}]},
        "image by URL",
    ),
    (
        M,
        {
            "messages": [
                {
                    "content": [
                        {
                            "type": "tool_result",
                            "content": [{"type": "document", "source": {"type": "url", "url": "http://x.example"}}],
                        }
                    ]
                }
            ]
        },
        "document by URL",
    ),
    (C, {"web_search_options": {"x": 1}}, "web_search_options"),
    (C, {"model": "gpt-4o-search-preview"}, "searches by itself"),
    (C, {"tools": [{"type": "web_search"}]}, "web_search"),
    (
        C,
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "https://x.example"}}]}]},
        "image_url by URL",
    ),
    (R, {"tools": [{"type": "web_search_preview"}]}, "web_search_preview"),
    (R, {"tools": [{"type": "computer_use_preview"}]}, "computer_use_preview"),
    (R, {"tools": [{"type": "mcp", "server_url": "https://x.example"}]}, "mcp"),
    (R, {"tools": [{"type": "namespace", "tools": [{"type": "web_search"}]}]}, "web_search"),
    (R, {"tools": [{"type": ["web_search"]}]}, "web_search"),
    (R, {"prompt": {"id": "pmpt_1"}}, "prompt"),
    (R, {"input": [{"content": [{"type": "input_image", "image_url": "https://x.example"}]}]}, "input_image by URL"),
    (R, {"input": [{"content": [{"type": "input_file", "file_url": "https://x.example"}]}]}, "input_file by URL"),
    (
        R,
        {"input": [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": "http://x"}]}]},
        "input_image by URL",
    ),
]
HOMELY: list[tuple[ModelApi, dict[str, Any]]] = [
    (M, {"tools": [{"name": "bash"}, {"type": "custom", "name": "x"}, {"type": "bash_20250124", "name": "bash"}]}),
    (M, {"tools": [{"type": "text_editor_20250728", "name": "e"}, {"type": "computer_20250124", "name": "c"}]}),
    (M, {"messages": [{"content": [{"type": "image", "source": {"type": "base64", "data": "aaaa"}}]}]}),
    (M, {"messages": [{"content": [{"type": "text", "text": "https://x.example"}]}]}),
    (
        M,
        {"messages": [{"content": [{"type": "tool_use", "input": {"type": "image", "source": {"url": "https://x"}}}]}]},
    ),
    (C, {"tools": [{"type": "function", "function": {"name": "web_search"}}]}),
    (C, {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aa"}}]}]}),
    (R, {"tools": [{"type": "function", "name": "x"}, {"type": "custom", "name": "y"}, {"type": "local_shell"}]}),
    (R, {"input": "see https://x.example"}),
    (R, {"tools": "nonsense", "input": 5}),
]


@pytest.mark.parametrize(("api", "more", "what"), REACHING)
async def test_what_makes_a_provider_reach_into_the_web_is_refused_unless_allowed(
    rig: Rig, api: ModelApi, more: dict[str, Any], what: str
) -> None:
    async with provider(answering(api)) as there:
        reached = await rig.gateway(there.url)
        answer = await reached.client.post(PATHS[api], json={**asked(api), **more})
        assert answer.status_code == 403
        assert what in answer.json()["error"]["message"]
        assert rig.told[0].data["code"] == "web_tool_refused"
        assert not there.asked
        open_minded = await rig.gateway(rig.policy(there.url, web_tools=True))
        assert (await open_minded.client.post(PATHS[api], json={**asked(api), **more})).status_code == 200


@pytest.mark.parametrize(("api", "more"), HOMELY)
def test_what_stays_at_home_is_not_refused(api: ModelApi, more: dict[str, Any]) -> None:
    assert reaching(api, "cheap-1", {**asked(api), **more}) == ""


# ---- models


async def test_the_models_a_tenant_may_use_are_listed_in_both_shapes(rig: Rig) -> None:
    policy = ModelPolicy(
        providers=(
            Provider("a", "http://127.0.0.1:9", (M,), models=("claude-1", "claude-*")),
            Provider("o", "http://127.0.0.1:9", (C, R), models=("gpt-1", "gpt-2")),
        ),
        allowed={"default": ("claude-*", "gpt-1")},
        default_model="claude-7",
    )
    reached = await rig.gateway(policy)
    openai = (await reached.client.get("/openai/v1/models")).json()
    assert openai["object"] == "list"
    assert [model["id"] for model in openai["data"]] == ["gpt-1"]
    anthropic = (await reached.client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()
    assert [model["id"] for model in anthropic["data"]] == ["claude-7", "claude-1"]
    assert anthropic["has_more"] is False
    assert (await reached.client.get("/v1/models/gpt-1")).json()["id"] == "gpt-1"
    assert (await reached.client.get("/v1/models/gpt-2")).status_code == 404


# ---- the proxy


async def test_what_is_meant_for_a_proxy_goes_to_it_without_a_token(rig: Rig) -> None:
    reached = await rig.gateway("http://127.0.0.1:9", egresses=EgressProxies())
    for raw in (
        b"CONNECT other.example:443 HTTP/1.1\r\nhost: other.example:443\r\n\r\n",
        b"GET http://other.example/ HTTP/1.1\r\nhost: other.example\r\n\r\n",
        b"POST http://other.example/ HTTP/1.1\r\nhost: other.example\r\ncontent-length: 2\r\n\r\n{}",
    ):
        answer = await reached.raw(raw)
        assert answer.split(b" ")[1] == b"403"
        assert b"other.example" in answer
    await until(lambda: [entry for entry in rig.told if entry.type == "egress.refused"])


async def test_where_there_is_no_proxy_nothing_goes_out(rig: Rig) -> None:
    reached = await rig.gateway("http://127.0.0.1:9")
    answer = await reached.raw(b"CONNECT other.example:443 HTTP/1.1\r\nhost: other.example:443\r\n\r\n")
    assert answer.split(b" ")[1] == b"403"


async def test_large_work_of_one_sandbox_rests_between() -> None:
    pace = Pace(SystemClock())
    loop = asyncio.get_running_loop()
    threads: set[int] = set()

    def work() -> float:
        threads.add(threading.get_ident())
        begun = time.monotonic()
        sum(range(300_000))
        return time.monotonic() - begun

    begun = loop.time()
    taken_s = [await pace.take(1 << 20, work) for _ in range(3)]
    assert loop.time() - begun >= 3 * sum(taken_s[:2])
    assert threading.get_ident() not in threads
    assert await pace.take(10, threading.get_ident) == threading.get_ident()


# ---- the sandbox's environment, the token's secret


async def test_what_programs_inside_are_told(rig: Rig) -> None:
    reached = await rig.gateway(rig.policy("http://127.0.0.1:9", default_model="cheap-1"))
    told = reached.gateways.environment(await rig.execution())
    assert told["MODEL"] == "cheap-1"
    assert told["MODEL_API"] == str(M)
    assert told["OPENAI_BASE_URL"] == "http://127.0.0.1:7411/v1"
    assert told["ANTHROPIC_BASE_URL"] == told["CARREL_GATEWAY"] == told["https_proxy"] == "http://127.0.0.1:7411"
    assert told["OPENAI_API_KEY"] == told["ANTHROPIC_API_KEY"] == told["CARREL_GATEWAY_TOKEN"]
    assert told["OPENAI_API_KEY"] == reached.client.headers["authorization"].partition(" ")[2]
    assert KEY not in str(told)


def test_the_secret_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    secret = load_secret(tmp_path)
    assert load_secret(tmp_path) == secret
    assert len(secret) == 32
    assert [path.name for path in tmp_path.iterdir()] == ["gateway.key"]
    assert (tmp_path / "gateway.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "gateway.key").write_bytes(b"short")
    with pytest.raises(ValueError, match="remove it"):
        load_secret(tmp_path)


def test_a_token_is_an_executions_own() -> None:
    token = token_of(SECRET, "exe_a")
    assert token.startswith("cgt_")
    assert len(token) == 44
    assert token != token_of(SECRET, "exe_b") != token_of(b"t" * 32, "exe_b")
    assert shows(token, f"Bearer {token}", "")
    assert shows(token, "", token)
    assert not shows(token, token, "")
    assert not shows(token, "Basic x", "ü")
    assert not shows(token, "", "")


def test_h11_is_what_we_took_it_for() -> None:
    """A CONNECT's bytes behind its head are the tunnel's, not a body's."""
    http = h11.Connection(h11.SERVER)
    http.receive_data(b"CONNECT a.example:443 HTTP/1.1\r\nhost: a\r\n\r\n\x16\x03")
    http.next_event()
    assert http.trailing_data == (b"\x16\x03", False)
