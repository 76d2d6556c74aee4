"""Streams over HTTP: what the protocol's public suite (tests/conformance) does not look at. Tenants and scopes,
problems, readers that leave, the end of the process, browsers that come back."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from orchestrator.stores.redis import RedisStreams
from orchestrator.streams import APPEND_BYTES
from orchestrator.tokens import Scope
from tests.server.conftest import Api, running_api, until, with_settings

TEXT = {"content-type": "text/plain"}
AT = "/v1/stream/s"


def readers(api: Api) -> int:
    assert isinstance(api.parts.streams, RedisStreams)
    return api.parts.streams.readers


async def made(api: Api, path: str = AT, body: bytes = b"", **headers: str) -> str:
    """A text stream; its tail."""
    answer = await api.http.put(path, content=body, headers={**TEXT, **headers})
    assert answer.status_code == 201, answer.text
    return answer.headers["stream-next-offset"]


async def test_a_name_may_be_any_path(api: Api) -> None:
    for path in ("a", "a/b//c", "%C3%BC%20x", "a%2Fb", "-1", "x:y{z}"):
        answer = await api.http.put(f"/v1/stream/{path}", headers=TEXT, content=path.encode())
        assert answer.status_code in {200, 201}
    assert (await api.http.get("/v1/stream/a/b")).content == b"a%2Fb"  # a slash is a slash, however it is written
    for path in ("/v1/stream/", "/v1/stream/" + "x" * 600, "/v1/stream/a%00b"):
        refused = await api.http.put(path, headers=TEXT)
        assert refused.status_code == 400 and refused.json()["field"] == "name"


async def test_tenants_have_streams_of_their_own_and_scopes_count(api: Api) -> None:
    await made(api, body=b"secret")
    other = await api.token_for(Scope.READ, Scope.WRITE, tenant="other")
    reader = await api.token_for(Scope.READ)
    async with api.caller(other) as stranger:
        assert (await stranger.get(AT)).status_code == 404
        assert (await stranger.put("/v1/stream/f", headers={"stream-forked-from": AT})).status_code == 404
        assert (await stranger.put(AT, headers=TEXT, content=b"theirs")).status_code == 201
    async with api.caller(reader) as http:
        assert (await http.get(AT)).content == b"secret"
        for method in ("PUT", "POST", "DELETE"):
            refused = await http.request(method, AT, headers=TEXT, content=b"x")
            assert refused.status_code == 403 and refused.json()["code"] == "forbidden"
    async with api.caller(None) as http:
        assert (await http.get(AT)).status_code == 401


@pytest.mark.parametrize(
    ("method", "query", "headers", "body", "status", "field"),
    [
        ("PUT", "", {"stream-ttl": "+1"}, b"", 400, "Stream-TTL"),
        ("PUT", "", {"stream-fork-offset": "-1"}, b"", 400, "Stream-Forked-From"),
        ("POST", "", {}, b"", 400, "body"),
        ("POST", "", {"producer-id": "p"}, b"x", 400, "Producer-Epoch"),
        ("POST", "", {"content-type": "nonsense"}, b"x", 400, "Content-Type"),
        ("POST", "", {}, b"x" * (APPEND_BYTES + 1), 413, "body"),
        ("GET", "?offset=", {}, b"", 400, "offset"),
        ("GET", "?live=websocket&offset=-1", {}, b"", 400, "live"),
        ("GET", "?live=sse", {}, b"", 400, "offset"),
        ("GET", "?offset=0000000000000001_0000000000000099", {}, b"", 400, "offset"),
    ],
)
async def test_bad_input_is_a_problem_that_names_the_field(
    api: Api, method: str, query: str, headers: dict[str, str], body: bytes, status: int, field: str
) -> None:
    if method != "PUT":
        await made(api, body=b"x")
    refused = await api.http.request(method, AT + query, headers={**TEXT, **headers}, content=body)
    assert refused.status_code == status, refused.text
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["cache-control"] == "private, no-store"
    problem = refused.json()
    assert (problem["field"], problem["status"]) == (field, status)
    assert problem["limit"] and problem["remedy"]


async def test_conflicts_say_what_a_writer_needs_to_go_on(api: Api) -> None:
    await made(api)

    async def append(epoch: int, seq: int, **headers: str) -> httpx.Response:
        producer = {"producer-id": "p", "producer-epoch": str(epoch), "producer-seq": str(seq)}
        return await api.http.post(AT, headers={**TEXT, **producer, **headers}, content=b"x")

    assert (await append(4, 0)).status_code == 200
    stale, gap = await append(3, 0), await append(4, 2)
    assert (stale.status_code, stale.headers["producer-epoch"], stale.json()["code"]) == (403, "4", "fenced")
    told = (gap.status_code, gap.headers["producer-expected-seq"], gap.headers["producer-received-seq"])
    assert (*told, gap.json()["code"]) == (409, "1", "2", "resend")
    end = await append(4, 1, **{"stream-closed": "true"})
    late = await append(4, 2)
    assert (late.status_code, late.headers["stream-closed"], late.json()["code"]) == (409, "true", "closed")
    assert late.headers["stream-next-offset"] == end.headers["stream-next-offset"]


async def test_what_a_tenant_wrote_is_kept_by_no_cache_and_guessed_at_by_no_browser(api: Api) -> None:
    await made(api, body=b"<script>")
    for answer in (await api.http.get(AT), await api.http.head(AT), await api.http.get("/v1/stream/none")):
        assert answer.headers["cache-control"] == "private, no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]


async def test_a_body_of_unknown_length_is_bounded_as_it_comes(api: Api) -> None:
    await made(api)

    async def endless() -> object:
        while True:
            yield b"x" * (1 << 20)

    try:
        answer = await api.http.post(AT, headers=TEXT, content=endless())  # type: ignore[arg-type]
    except httpx.HTTPError:
        answer = None  # the server may hang up while it is still being talked to
    assert answer is None or answer.status_code == 413
    assert (await api.http.get(AT)).content == b""


async def test_a_browser_that_comes_back_says_where_it_was_and_is_told_when_to_stay_away(api: Api) -> None:
    first = await made(api, body=b"one")
    await api.http.post(AT, headers={**TEXT, "stream-closed": "true"}, content=b"two")
    url = f"{AT}?offset=-1&live=sse"
    whole = await api.http.get(url)
    ids = [line.removeprefix("id: ") for line in whole.text.splitlines() if line.startswith("id: ")]
    assert "data:onetwo\n" in whole.text and len(ids) == 2
    again = await api.http.get(url, headers={"last-event-id": first})
    assert "data:two\n" in again.text and "one" not in again.text
    over = await api.http.get(url, headers={"last-event-id": ids[-1]})
    assert over.status_code == 204 and over.headers["stream-closed"] == "true"


async def following(http: httpx.AsyncClient, path: str, taken: list[str]) -> None:
    async with http.stream("GET", path) as answer:
        async for line in answer.aiter_lines():
            taken.append(line)


async def test_fifty_followers_share_one_reader_and_leave_nothing_behind(api: Api) -> None:
    await made(api, body=b"1 ")
    seen: list[list[str]] = [[] for _ in range(50)]
    tasks = [asyncio.ensure_future(following(api.http, f"{AT}?offset=-1&live=sse", lines)) for lines in seen]
    await until(lambda: all("data:1 " in lines for lines in seen))
    await until(lambda: readers(api) == 1)
    for task in tasks[:25]:
        task.cancel()
    await asyncio.gather(*tasks[:25], return_exceptions=True)
    await until(lambda: api.parts.viewers == 25)
    await api.http.post(AT, headers={**TEXT, "stream-closed": "true"}, content=b"2")
    await asyncio.gather(*tasks[25:])
    for lines in seen[25:]:
        assert [line for line in lines if line.startswith("data:") and "{" not in line] == ["data:1 ", "data:2"]
        assert json.loads([line for line in lines if line.startswith("data:")][-1][5:])["streamClosed"] is True
    await until(lambda: readers(api) == 0)


async def test_a_long_poll_whose_caller_left_holds_nothing(api: Api) -> None:
    tail = await made(api, body=b"x")
    polling = asyncio.ensure_future(api.http.get(f"{AT}?offset={tail}&live=long-poll"))
    await until(lambda: readers(api) == 1)
    polling.cancel()
    await asyncio.gather(polling, return_exceptions=True)
    await until(lambda: readers(api) == 0)


async def test_a_removed_stream_lets_its_followers_go_and_tells_them_why_when_they_ask(api: Api) -> None:
    tail = await made(api, body=b"x")
    lines: list[str] = []
    events = asyncio.ensure_future(following(api.http, f"{AT}?offset=-1&live=sse", lines))
    polling = asyncio.ensure_future(api.http.get(f"{AT}?offset={tail}&live=long-poll"))
    await until(lambda: readers(api) == 1 and "data:x" in lines)
    assert (await api.http.delete(AT)).status_code == 204
    await events
    assert (await polling).status_code == 404
    await made(api, body=b"another")
    assert (await api.http.get(f"{AT}?offset={tail}")).status_code == 410


async def test_the_process_ends_at_once_however_many_wait(redis_url: str, installation: str, short_dir: Path) -> None:
    # Held for longer than a test may last: only the process's end can answer them.
    patient = with_settings(long_poll_s=3600, heartbeat_s=3600)
    async with running_api(redis_url, installation, short_dir, patient) as api:
        tail = await made(api, body=b"x")
        lines: list[str] = []
        polls = [asyncio.ensure_future(api.http.get(f"{AT}?offset={tail}&live=long-poll")) for _ in range(10)]
        events = asyncio.ensure_future(following(api.http, f"{AT}?offset=-1&live=sse", lines))
        await until(lambda: readers(api) == 1 and "data:x" in lines)
        api.parts.stopping.set()
        # Each got a whole answer with its place in it, also one that had just come; not a cut line.
        for answer in await asyncio.gather(*polls):
            assert answer.status_code == 204 and answer.headers["stream-next-offset"] == tail
            assert "stream-closed" not in answer.headers
        await events
        await until(lambda: readers(api) == 0)


async def test_a_reader_that_takes_nothing_slows_nobody(api: Api) -> None:
    """One that never reads its socket; another that does gets 20 MB meanwhile."""
    await made(api)
    _, stuck = await asyncio.open_unix_connection(str(api.socket))
    request = f"GET {AT}?offset=-1&live=sse HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.token}\r\n\r\n"
    stuck.write(request.encode())
    await until(lambda: api.parts.viewers == 1)
    lines: list[str] = []
    quick = asyncio.ensure_future(following(api.http, f"{AT}?offset=-1&live=sse", lines))
    for n in range(20):
        closing = {"stream-closed": "true"} if n == 19 else {}
        body = b"%d" % (n % 10) * (1 << 20)
        assert (await api.http.post(AT, headers={**TEXT, **closing}, content=body)).status_code == 204
    await quick
    got = "".join(line[5:] for line in lines if line.startswith("data:") and "{" not in line)
    assert len(got) == 20 << 20 and got == "".join(str(n % 10) * (1 << 20) for n in range(20))
    stuck.close()
    await stuck.wait_closed()
