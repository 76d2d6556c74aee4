"""A history out: pages, long polls, server-sent events. Also what happens to viewers that do not read, and at the end
of an api process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.events import Cursor, Entry
from orchestrator.history import Lease, Spooled
from orchestrator.server.parts import ServerSettings
from orchestrator.stores.redis import Server
from orchestrator.tokens import Scope, digest_of
from tests.contracts.redis_store import lines
from tests.server.conftest import Api, http_over, running_api, until, with_settings

SSE = {"accept": "text/event-stream"}


@pytest.fixture
def settings() -> ServerSettings:
    return with_settings(stall_limit_s=1.0, heartbeat_s=0.2)


async def written(api: Api, count: int, **spec: Any) -> Lease:
    """A running one with so many lines of output."""
    lease = await api.running(**spec)
    for first in range(1, count + 1, 1000):
        await api.store.history.append(lease, attempt=1, spooled=lines(first, min(first + 999, count)))
    return lease


async def sent(http: httpx.AsyncClient, id: str, *, headers: dict[str, str] | None = None, **query: Any) -> list[Any]:
    """All (event, id, data) of one stream, until it ends."""
    return [one async for one in stream(http, id, headers=headers, **query)]


async def stream(
    http: httpx.AsyncClient, id: str, *, headers: dict[str, str] | None = None, **query: Any
) -> AsyncGenerator[tuple[str, str, Any], None]:
    path = f"/v1/executions/{id}/events"
    async with http.stream("GET", path, params=query, headers={**SSE, **(headers or {})}) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            else:
                if "data" in fields:
                    yield fields["event"], fields.get("id", ""), json.loads(fields["data"])
                fields = {}


async def test_a_page_goes_on_where_the_last_one_ended(api: Api) -> None:
    lease = await written(api, 2500)
    await api.store.finish(lease, own=3)
    seen: list[int] = []
    after = "0"
    while True:
        answer = await api.http.get(
            f"/v1/executions/{lease.execution_id}/events", params={"after": after, "limit": 700}
        )
        page = answer.json()
        seen += [event["seq"] for event in page["events"]]
        after = page["next"]
        assert page["closed"] == page["up_to_date"] == (seen[-1] == page["tail"])
        if page["closed"]:
            break
    assert seen == list(range(1, page["tail"] + 1))
    history = await api.client.execution(lease.execution_id).history(after="0", limit=10_000)
    assert len(history.events) == len(seen)


async def test_places_are_cursors_numbers_now_and_the_last_k(api: Api) -> None:
    lease = await written(api, 20)
    tail = (await api.record(lease.execution_id)).tail

    async def page(**query: Any) -> list[int]:
        answer = await api.http.get(f"/v1/executions/{lease.execution_id}/events", params=query)
        assert answer.status_code == 200, answer.text
        return [event["seq"] for event in answer.json()["events"]]

    assert await page() == list(range(1, tail + 1))
    assert await page(tail=3) == [tail - 2, tail - 1, tail]
    assert await page(tail=0) == []
    assert await page(after="now") == []
    assert await page(after=tail - 1) == [tail]
    assert await page(after=str(Cursor(1, tail - 2))) == [tail - 1, tail]
    assert await page(tail=10**6, limit=2) == [1, 2]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"after": "x"}, "after"),
        ({"after": "-1"}, "after"),
        ({"after": "9" * 17}, "after"),
        ({"after": "1_2"}, "after"),
        ({"tail": "-1"}, "tail"),
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"wait_s": "61"}, "wait_s"),
        ({"wait_s": "nan"}, "wait_s"),
    ],
)
async def test_a_wrong_place_is_named(api: Api, query: dict[str, str], field: str) -> None:
    id = await api.submit()
    for headers in ({}, SSE):
        answer = await api.http.get(f"/v1/executions/{id}/events", params=query, headers=headers)
        assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text


@pytest.mark.parametrize("after", ["99", str(Cursor(1, 99)), str(Cursor(7, 1))])
async def test_a_place_that_is_not_there_is_gone(api: Api, after: str) -> None:
    id = await api.submit()
    for headers in ({}, SSE):
        answer = await api.http.get(f"/v1/executions/{id}/events", params={"after": after}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (410, "gone"), answer.text
        assert answer.json()["earliest"] == 1 and answer.json()["generation"] == 1


async def test_a_long_poll_answers_with_the_first_event(api: Api) -> None:
    lease = await api.running()
    tail = (await api.record(lease.execution_id)).tail
    path = f"/v1/executions/{lease.execution_id}/events"
    held = asyncio.create_task(api.http.get(path, params={"after": tail, "wait_s": 60}))
    await asyncio.sleep(0.05)
    assert not held.done()
    await api.store.history.append(lease, attempt=1, spooled=lines(1, 3))
    page = (await held).json()
    assert [event["data"]["data"] for event in page["events"]] == ["line 1\n", "line 2\n", "line 3\n"]
    empty = (await api.http.get(path, params={"after": page["next"], "wait_s": 0.05})).json()
    assert (empty["events"], empty["next"], empty["up_to_date"]) == ([], page["next"], True)


async def test_bytes_that_are_no_text_come_exactly(api: Api) -> None:
    lease = await api.running()
    bodies = [b"\xff\x00\xfe", "ä€😀".encode(), b"\r\n\x1b[2J", "😀".encode()[:2]]
    entries = [Entry("output", {"stream": "stdout"}, body, "harness", at) for at, body in enumerate(bodies, 1)]
    await api.store.history.append(lease, attempt=1, spooled=Spooled(1, len(bodies), entries))
    await api.store.finish(lease, own=3)
    events = [event async for event in api.client.execution(lease.execution_id).events() if event.body is not None]
    assert [event.body for event in events] == bodies
    plain = (await api.http.get(f"/v1/executions/{lease.execution_id}/events")).json()["events"]
    assert [sorted(event["data"]) for event in plain if event["type"] == "output"] == [
        ["data_b64", "stream"],
        ["data", "stream"],
        ["data", "stream"],
        ["data_b64", "stream"],
    ]


async def test_a_stream_is_history_then_live_then_closed(api: Api) -> None:
    lease = await written(api, 2000)
    id = lease.execution_id
    got: list[tuple[str, str, Any]] = []

    async def watch() -> None:
        async for one in stream(api.http, id):
            got.append(one)

    watching = asyncio.create_task(watch())
    await until(lambda: any(event == "up_to_date" for event, _, _ in got))
    before = len(got)
    for src in range(2001, 2101):
        await api.store.history.append(lease, attempt=1, spooled=lines(src, src))
    await api.store.finish(lease, own=3)
    await watching
    events = [data for event, _, data in got if event == "event"]
    tail = (await api.record(id)).tail
    assert [data["seq"] for data in events] == list(range(1, tail + 1))
    assert [event for event, _, _ in got if event != "event"] == ["up_to_date", "closed"]
    assert got[before - 1][0] == "up_to_date" and got[-1][0] == "closed"
    # Every event and every control event names the place, so that whoever reconnects anywhere goes on.
    assert [seen for event, seen, _ in got if event == "event"] == [str(Cursor(1, at)) for at in range(1, tail + 1)]
    assert got[-1][1] == str(Cursor(1, tail))


async def test_last_event_id_beats_the_query_and_the_end_is_204(api: Api) -> None:
    lease = await written(api, 10)
    await api.store.finish(lease, own=3)
    tail = (await api.record(lease.execution_id)).tail
    got = await sent(api.http, lease.execution_id, after=0, headers={"last-event-id": str(Cursor(1, tail - 2))})
    assert [data.get("seq") for _, _, data in got] == [tail - 1, tail, None]
    ended = await api.http.get(
        f"/v1/executions/{lease.execution_id}/events", headers={**SSE, "last-event-id": str(Cursor(1, tail))}
    )
    assert (ended.status_code, ended.content) == (204, b"")


async def test_a_quiet_stream_beats(api: Api) -> None:
    id = await api.submit()
    async with api.http.stream("GET", f"/v1/executions/{id}/events", headers=SSE) as answer:
        beats = 0
        async for line in answer.aiter_lines():
            beats += line == ":"
            if beats == 3:
                break


async def test_leaving_ends_the_viewer_and_not_the_work(api: Api) -> None:
    lease = await written(api, 10)
    async with aclosing(stream(api.http, lease.execution_id)) as watching:
        await anext(watching)
        assert api.parts.viewers == 1
    await until(lambda: api.parts.viewers == 0)
    await api.store.history.append(lease, attempt=1, spooled=lines(11, 11))


async def test_reconnecting_at_random_misses_and_repeats_nothing(api: Api) -> None:
    lease = await api.running()
    total = 3000

    async def work() -> None:
        for first in range(1, total + 1, 30):
            await api.store.history.append(lease, attempt=1, spooled=lines(first, first + 29))
        await api.store.finish(lease, own=3)

    working = asyncio.create_task(work())
    seen: list[int] = []
    last, cuts, closed = "", 0, False
    while not closed:
        headers = {"last-event-id": last} if last else {}
        async with aclosing(stream(api.http, lease.execution_id, headers=headers)) as watching:
            async for event, id, data in watching:
                last = id
                closed = event == "closed"
                if event == "event":
                    seen.append(data["seq"])
                    if len(seen) % 100 == 0 and cuts < 20:
                        cuts += 1
                        break
    await working
    assert cuts == 20
    assert seen == list(range(1, (await api.record(lease.execution_id)).tail + 1))


def stalled(api: Api, path: str) -> socket.socket:
    """A caller that asks for a stream and never reads it."""
    line = socket.socket(socket.AF_UNIX)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect(str(api.socket))
    line.sendall(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.token}\r\n"
        "Accept: text/event-stream\r\n\r\n".encode()
    )
    return line


async def test_a_viewer_that_reads_nothing_is_cut_and_nobody_waits_for_it(api: Api) -> None:
    lease = await api.running()
    lazy = [stalled(api, f"/v1/executions/{lease.execution_id}/events") for _ in range(3)]
    try:
        await until(lambda: api.parts.viewers == 3)
        watching = asyncio.create_task(sent(api.http, lease.execution_id))
        for first in range(1, 20_001, 500):
            await api.store.history.append(lease, attempt=1, spooled=lines(first, first + 499, text="x" * 100))
        await until(lambda: api.parts.viewers == 1)  # the others are gone, the stream goes on
        await api.store.finish(lease, own=3)
        got = await watching
        assert [data["seq"] for event, _, data in got if event == "event"] == list(
            range(1, (await api.record(lease.execution_id)).tail + 1)
        )
        dropped = api.parts.metrics.viewers_dropped.labels("sse")._value.get()
        assert dropped == 3
    finally:
        for line in lazy:
            line.close()


async def test_a_revoked_token_s_stream_ends(redis_url: str, installation: str, short_dir: Path) -> None:
    quick = with_settings(recheck_s=0.0, heartbeat_s=0.05)
    async with running_api(redis_url, installation, short_dir, quick) as api:
        id = await api.submit()
        secret = await api.token_for(Scope.READ)
        async with api.caller(secret) as http:
            watching = asyncio.create_task(sent(http, id))
            await until(lambda: api.parts.viewers == 1)
            token = await api.tokens.find(digest_of(secret))
            assert token is not None and await api.tokens.revoke(token.id)
            assert [event for event, _, _ in await watching] == ["event", "up_to_date"]


async def test_too_many_viewers_are_told(redis_url: str, installation: str, short_dir: Path) -> None:
    async with running_api(redis_url, installation, short_dir, with_settings(viewer_limit=1)) as api:
        id = await api.submit()
        async with aclosing(stream(api.http, id)) as watching:
            await anext(watching)
            answer = await api.http.get(f"/v1/executions/{id}/events", headers=SSE)
            assert (answer.status_code, answer.json()["code"]) == (429, "too_many")
            assert int(answer.headers["retry-after"]) > 0


async def test_a_restart_tells_the_viewers_and_they_go_on_elsewhere(
    redis_url: str, installation: str, short_dir: Path, settings: ServerSettings
) -> None:
    seen: list[int] = []
    async with running_api(redis_url, installation, short_dir, settings, name="b") as second:
        async with (
            http_over(short_dir / "a.sock", second.token) as http,
            running_api(redis_url, installation, short_dir, settings, name="a") as first,
        ):
            lease = await written(first, 100)
            last = ""
            comments: list[str] = []

            async def watch() -> None:
                nonlocal last
                path = f"/v1/executions/{lease.execution_id}/events"
                async with http.stream("GET", path, headers=SSE) as answer:
                    async for line in answer.aiter_lines():
                        if line.startswith("id: "):
                            last = line[4:]
                        if line.startswith(": "):
                            comments.append(line)
                        if line.startswith("data: ") and '"seq"' in line:
                            seen.append(json.loads(line[6:])["seq"])

            watching = asyncio.create_task(watch())
            await until(lambda: len(seen) >= 100)
        await watching  # ended properly, not broken off
        assert comments == [": this server restarts, connect again"]
        await second.store.finish(lease, own=3)
        got = await sent(second.http, lease.execution_id, headers={"last-event-id": last})
        seen += [data["seq"] for event, _, data in got if event == "event"]
        assert seen == list(range(1, (await second.record(lease.execution_id)).tail + 1))


async def test_a_page_is_encoded_once_for_all_viewers(api: Api) -> None:
    lease = await api.running()
    watching = [asyncio.create_task(sent(api.http, lease.execution_id)) for _ in range(20)]
    await until(lambda: api.parts.viewers == 20)
    for first in range(1, 1001, 10):
        await api.store.history.append(lease, attempt=1, spooled=lines(first, first + 9))
    await api.store.finish(lease, own=3)
    everything = await asyncio.gather(*watching)
    tail = (await api.record(lease.execution_id)).tail
    for got in everything:
        assert [data["seq"] for event, _, data in got if event == "event"] == list(range(1, tail + 1))
    assert api.parts.encodings.encoded < 5 * tail  # 20 viewers, and not 20 times the work


async def test_the_store_s_absence_ends_a_stream_without_a_word_and_a_request_with_503(
    short_dir: Path, installation: str, settings: ServerSettings
) -> None:
    from orchestrator.stores import embedded

    running = await asyncio.to_thread(embedded.ensure, short_dir / "r")
    try:
        async with running_api(running.url, installation, short_dir, settings) as api:
            _impatient(api.store.server)
            id = await api.submit()
            watching = asyncio.create_task(sent(api.http, id))
            await until(lambda: api.parts.viewers == 1)
            await asyncio.to_thread(embedded.shutdown, short_dir / "r")
            got = await watching
            assert [event for event, _, _ in got] == ["event", "up_to_date"]
            answer = await api.http.get(f"/v1/executions/{id}")
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            ready = await api.http.get("/readyz")
            assert ready.status_code == 503 and ready.json()["reasons"][0].startswith("store: ")
            assert (await api.http.get("/healthz")).status_code == 200
            assert (await api.http.get("/metrics")).status_code == 200
            await asyncio.to_thread(embedded.ensure, short_dir / "r")
            assert (await api.http.get(f"/v1/executions/{id}")).status_code == 200
    finally:
        await asyncio.to_thread(embedded.shutdown, short_dir / "r")


def _impatient(server: Server) -> None:
    server.patience_s = 0.3
