"""One socket for both ways, against a real WebSocket server that breaks its connections: every event once, every
message at least once with one id, until its receipt is there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve

from orchestrator.client import AsyncClient, Batch, Client, Patience
from orchestrator.client.channel import Refused
from orchestrator.errors import Conflict, Gone
from orchestrator.events import Cursor
from orchestrator.wire.steering import Receipt
from tests.client.peer import event

EAGER = Patience(limit_s=20, first_s=0.001, most_s=0.002)


class Server:
    """A history of `total` events that ends once the message `m1` was received. The first `breaks` connections are
    cut after three events each; the first receipt is lost with its connection."""

    def __init__(self, total: int, breaks: int) -> None:
        self.total, self.breaks = total, breaks
        self.received: list[str] = []
        self.opened: list[str] = []
        self.url = ""

    async def connection(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        self.opened.append(socket.request.path)
        assert socket.request.headers["authorization"] == "Bearer token"
        after = socket.request.path.rpartition("=")[2]
        first = (int(after) if after.isdigit() else Cursor.parse(after).seq) + 1
        last = min(self.total, first + 2) if self.breaks else self.total
        await socket.send(json.dumps({"type": "events", "events": [event(seq) for seq in range(first, last + 1)]}))
        await socket.send(json.dumps({"type": "up_to_date", "cursor": str(Cursor(1, max(first - 1, last)))}))
        if self.breaks:
            self.breaks -= 1
            socket.transport.abort()
            return
        async for frame in socket:
            got = json.loads(frame)
            self.received.append(got["id"])
            if got["id"] == "refused":
                problem = {"code": "conflict", "detail": "no"}
                await socket.send(json.dumps({"type": "error", "id": "refused", "problem": problem}))
            elif len(self.received) == 1:
                socket.transport.abort()  # taken, and its receipt lost
                return
            else:
                await socket.send(json.dumps({"type": "receipt", "id": got["id"], "n": 1, "repeated": True}))
                await socket.send(json.dumps({"type": "closed", "cursor": str(Cursor(1, self.total))}))
                return


@asynccontextmanager
async def serving(total: int, breaks: int) -> AsyncIterator[Server]:
    server = Server(total, breaks)
    async with serve(server.connection, "127.0.0.1", 0) as listening:
        server.url = f"http://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}"
        yield server


async def test_every_event_once_and_a_message_until_its_receipt() -> None:
    seqs: list[int] = []
    receipts: list[Receipt] = []
    async with serving(20, 4) as server, AsyncClient(server.url, "token", watching=EAGER) as client:
        async with client.execution("exe_x").channel() as channel:
            await channel.send("hello", id="m1")
            async for item in channel:
                if isinstance(item, Batch):
                    seqs += [one.seq for one in item.events]
                elif isinstance(item, Receipt):
                    receipts.append(item)
        assert seqs == list(range(1, 21))
        assert server.received == ["m1", "m1"]
        assert [(got.id, got.repeated) for got in receipts] == [("m1", True)]


async def test_a_refused_message_is_said_and_not_sent_again() -> None:
    refusals: list[Refused] = []
    async with serving(3, 0) as server, AsyncClient(server.url, "token", watching=EAGER) as client:
        async with client.execution("exe_x").channel() as channel:
            await channel.send("no", id="refused")
            async for item in channel:
                if isinstance(item, Refused):
                    refusals.append(item)
                    await channel.send("yes", id="m1")
        assert server.received == ["refused", "m1"]
    assert [(got.id, type(got.error)) for got in refusals] == [("refused", Conflict)]


async def test_the_blocking_twin() -> None:
    def watch(url: str) -> tuple[list[int], list[str]]:
        seqs: list[int] = []
        receipts: list[str] = []
        with Client(url, "token", watching=EAGER) as client, client.execution("exe_x").channel() as channel:
            channel.send("hello", id="m1")
            for item in channel:
                if isinstance(item, Batch):
                    seqs += [one.seq for one in item.events]
                elif isinstance(item, Receipt):
                    receipts.append(item.id)
        return seqs, receipts

    async with serving(20, 4) as server:
        assert await asyncio.to_thread(watch, server.url) == (list(range(1, 21)), ["m1"])


async def test_leaving_ends_the_iteration() -> None:
    async with serving(3, 0) as server, AsyncClient(server.url, "token", watching=EAGER) as client:
        async with client.execution("exe_x").channel() as channel:
            async for item in channel:
                if isinstance(item, Batch) and item.up_to_date:
                    await channel.aclose()
        assert len(server.opened) == 1


async def test_what_trying_again_cannot_change_is_raised() -> None:
    async def refuse(socket: ServerConnection) -> None:
        await socket.send(json.dumps({"type": "error", "problem": {"code": "gone", "detail": "no", "earliest": 7}}))
        await socket.wait_closed()

    async with serve(refuse, "127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}"
        async with AsyncClient(url, "token", watching=EAGER) as client, client.execution("e").channel() as channel:
            with pytest.raises(Gone) as gone:
                async for _ in channel:
                    pass
    assert gone.value.data["earliest"] == 7
