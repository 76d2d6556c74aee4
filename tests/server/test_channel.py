"""The socket of a channel: events out, messages in, and what a hostile or slow peer gets."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Close

from orchestrator.events import Cursor
from orchestrator.server.parts import ServerSettings
from orchestrator.server.serve import WEBSOCKET_BYTES
from orchestrator.tokens import Scope, digest_of
from tests.contracts.redis_store import lines
from tests.server.conftest import Api, running_api, until, with_settings


@pytest.fixture
def settings() -> ServerSettings:
    return with_settings(stall_limit_s=1.0)


@asynccontextmanager
async def channel(api: Api, id: str, *, query: str = "", token: str = "") -> AsyncIterator[ClientConnection]:
    headers = {"authorization": f"Bearer {token or api.token}"}
    uri = f"ws://localhost/v1/executions/{id}/channel{query}"
    async with unix_connect(str(api.socket), uri, additional_headers=headers, max_size=None) as line:
        yield line


async def frames(line: ClientConnection, last: str) -> list[dict[str, Any]]:
    """Frames up to and including the first of this type, those of several events taken apart."""
    got: list[dict[str, Any]] = []
    while not got or got[-1]["type"] != last:
        frame = json.loads(await line.recv())
        if frame["type"] == "events":
            got += [{"type": "event", "event": event} for event in frame["events"]]
        else:
            got.append(frame)
    return got


async def ended(line: ClientConnection) -> Close | None:
    """How it was closed."""
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            await line.recv()
    return caught.value.rcvd


async def test_events_out_then_the_end(api: Api) -> None:
    lease = await api.running()
    async with channel(api, lease.execution_id) as line:
        got = await frames(line, "up_to_date")
        await api.store.history.append(lease, attempt=1, spooled=lines(1, 2000))
        await api.store.finish(lease, own=3)
        got += await frames(line, "closed")
        end = await ended(line)
    tail = (await api.record(lease.execution_id)).tail
    assert [frame["event"]["seq"] for frame in got if frame["type"] == "event"] == list(range(1, tail + 1))
    assert got[-1] == {"type": "closed", "cursor": str(Cursor(1, tail))}
    assert end is not None and end.code == 1000


async def test_messages_in_with_their_receipts(api: Api) -> None:
    lease = await api.running()
    async with channel(api, lease.execution_id, query="?after=now") as line:
        await frames(line, "up_to_date")
        for frame in (
            {"type": "message", "id": "m1", "text": "hello"},
            {"type": "message", "id": "m1", "text": "hello"},
            {"type": "message", "data_b64": "AP8=", "mode": "follow_up"},
            {"type": "interrupt", "id": "i1"},
            {"type": "cancel", "id": "c1", "grace_s": 3, "reason": "enough"},
            {"type": "ping", "id": "p1"},
        ):
            await line.send(json.dumps(frame))
        got = await frames(line, "pong")
    receipts = [frame for frame in got if frame["type"] == "receipt"]
    assert [(frame["n"], frame["repeated"]) for frame in receipts] == [
        (1, False),
        (1, True),
        (2, False),
        (0, False),
        (0, False),
    ]
    assert [frame["id"] for frame in receipts if frame["id"] in {"m1", "i1", "c1"}] == ["m1", "m1", "i1", "c1"]
    inbox = await api.store.history.inbox(lease.execution_id, 0)
    assert (inbox[0].id, inbox[0].body, inbox[0].mode) == ("m1", b"hello", "steer")
    assert (inbox[1].body, inbox[1].mode) == (b"\x00\xff", "raw")
    wants = (await api.record(lease.execution_id)).wants
    assert wants.cancel is not None and (wants.cancel.grace_s, wants.cancel.reason) == (3, "enough")
    assert [want.id for want in wants.interrupts] == ["i1"]


@pytest.mark.parametrize(
    ("frame", "code", "id"),
    [
        ("", "invalid", ""),
        ("{", "invalid", ""),
        (b"\xff\x00", "invalid", ""),
        ("[]", "invalid", ""),
        ('{"type":"shout","id":"x"}', "invalid", "x"),
        ('{"type":"message","id":"x"}', "invalid", "x"),
        ('{"type":"message","id":7,"text":"a"}', "invalid", ""),
        ('{"type":"message","id":"x","text":"a","evil":1}', "invalid", "x"),
        ('{"type":"message","id":"x","text":"\\ud800"}', "invalid", "x"),
        ("[" * 100_000, "invalid", ""),
        ('{"type":"message","id":"x","text":"' + "a" * 600_000 + '"}', "invalid", "x"),
    ],
)
async def test_a_wrong_frame_is_answered_and_the_socket_goes_on(
    api: Api, frame: str | bytes, code: str, id: str
) -> None:
    execution = await api.submit()
    async with channel(api, execution) as line:
        await line.send(frame)
        await line.send('{"type":"ping"}')
        got = await frames(line, "pong")
    errors = [one for one in got if one["type"] == "error"]
    assert [(error["problem"]["code"], error["id"]) for error in errors] == [(code, id)]
    assert errors[0]["problem"]["status"] == 422


async def test_63_a_reader_may_not_steer(api: Api) -> None:
    id = await api.submit()
    async with channel(api, id, token=await api.token_for(Scope.READ)) as line:
        for frame in ({"type": "message", "text": "x"}, {"type": "interrupt"}, {"type": "cancel"}):
            await line.send(json.dumps({**frame, "id": "x"}))
            error = (await frames(line, "error"))[-1]
            assert (error["id"], error["problem"]["code"]) == ("x", "forbidden")
    assert (await api.record(id)).inbox_tail == 0 and (await api.record(id)).wants.cancel is None


@pytest.mark.parametrize(("query", "status"), [("?after=x", 422), ("?tail=-1", 422)])
async def test_a_wrong_handshake_is_refused_with_a_problem(api: Api, query: str, status: int) -> None:
    id = await api.submit()
    with pytest.raises(InvalidStatus) as caught:
        async with channel(api, id, query=query):
            pass
    response = caught.value.response
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert json.loads(response.body or b"")["field"] in {"after", "tail"}


async def test_a_place_that_is_gone_is_an_error_frame(api: Api) -> None:
    id = await api.submit()
    async with channel(api, id, query="?after=99") as line:
        (frame,) = await frames(line, "error")
        assert (frame["id"], frame["problem"]["code"], frame["problem"]["earliest"]) == ("", "gone", 1)
        await ended(line)


async def test_64_a_message_over_the_bound_closes_the_socket(api: Api) -> None:
    id = await api.submit()
    async with channel(api, id) as line:
        with pytest.raises(ConnectionClosed) as caught:
            await line.send("x" * (WEBSOCKET_BYTES + 1))
            await line.recv()
            await line.recv()
            await line.recv()
    assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009
    await until(lambda: api.parts.viewers == 0)


async def test_a_revoked_token_s_socket_is_closed(redis_url: str, installation: str, short_dir: Path) -> None:
    quick = with_settings(recheck_s=0.0, heartbeat_s=0.05)
    async with running_api(redis_url, installation, short_dir, quick) as api:
        id = await api.submit()
        secret = await api.token_for(Scope.READ)
        async with channel(api, id, token=secret) as line:
            token = await api.tokens.find(digest_of(secret))
            assert token is not None and await api.tokens.revoke(token.id)
            end = await ended(line)
    assert end is not None and end.code == 1008


async def test_64_compression_is_not_spoken(api: Api) -> None:
    id = await api.submit()
    async with channel(api, id) as line:
        assert line.response is not None and "sec-websocket-extensions" not in line.response.headers


async def test_64_a_flood_of_pings_that_reads_nothing_is_not_remembered(api: Api) -> None:
    """Its pongs fill the socket; from there on nothing more is read from it, so nothing piles up here."""
    id = await api.submit()
    line = raw_socket(api, id)
    try:
        await until(lambda: api.parts.viewers == 1)
        ping = b"\x89\xfd\0\0\0\0" + b"x" * 125
        line.setblocking(False)
        sent = 0
        while sent < 64 << 20:
            try:
                sent += line.send(ping * 512)
            except BlockingIOError:
                before = sent
                await asyncio.sleep(0.3)
                try:
                    sent += line.send(ping)
                except BlockingIOError:
                    break  # it does not read any more
                assert sent > before
        assert sent < 32 << 20
    finally:
        line.close()
    await until(lambda: api.parts.viewers == 0)


def raw_socket(api: Api, id: str) -> sockets.socket:
    """An open channel whose peer never reads."""
    line = sockets.socket(sockets.AF_UNIX)
    line.connect(str(api.socket))
    line.sendall(
        f"GET /v1/executions/{id}/channel HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {api.token}\r\n\r\n".encode()
    )
    return line


async def test_a_viewer_that_reads_nothing_is_cut(api: Api) -> None:
    lease = await api.running()
    line = raw_socket(api, lease.execution_id)
    try:
        await until(lambda: api.parts.viewers == 1)
        for first in range(1, 20_001, 500):
            await api.store.history.append(lease, attempt=1, spooled=lines(first, first + 499, text="x" * 100))
        await until(lambda: api.parts.viewers == 0)
        assert api.parts.metrics.viewers_dropped.labels("websocket")._value.get() == 1
    finally:
        line.close()


async def test_leaving_is_noticed_by_a_socket_that_has_nothing_to_say(api: Api) -> None:
    id = await api.submit()
    async with channel(api, id) as line:
        await frames(line, "up_to_date")
        line.transport.abort()
    await until(lambda: api.parts.viewers == 0)


async def test_a_restart_says_so_and_where_to_go_on(
    redis_url: str, installation: str, short_dir: Path, settings: ServerSettings
) -> None:
    async with running_api(redis_url, installation, short_dir, settings) as api:
        id = await api.submit()
        closing = asyncio.create_task(_until_closed(api, id))
        await until(lambda: api.parts.viewers == 1)
    end = await closing
    assert end is not None and (end.code, end.reason) == (1012, str(Cursor(1, 1)))


async def _until_closed(api: Api, id: str) -> Close | None:
    async with channel(api, id) as line:
        return await ended(line)


async def test_through_the_client(api: Api) -> None:
    lease = await api.running()

    async def work() -> None:
        while not (await api.record(lease.execution_id)).inbox_tail:
            await asyncio.sleep(0.005)
        await api.store.history.append(lease, attempt=1, spooled=lines(1, 300))
        await api.store.finish(lease, own=3)

    working = asyncio.create_task(work())
    async with api.client.execution(lease.execution_id).channel() as line:
        await line.send("hello", id="m1")
        seen = [item async for item in line]
    await working
    seqs = [event.seq for item in seen for event in getattr(item, "events", ())]
    assert seqs == list(range(1, (await api.record(lease.execution_id)).tail + 1))
    assert any(getattr(item, "id", "") == "m1" for item in seen)
