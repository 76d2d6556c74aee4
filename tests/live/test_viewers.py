"""Slow and lost viewers of a real execution: the work goes at its own rate, every other viewer misses nothing.

How fast it went with and without viewers is printed (`pytest -s`), never asserted: the machine may be busy. What is
asserted is that the harness was never held back, and that the stalled viewer is the only one that was cut.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
from contextlib import aclosing

import pytest

from orchestrator.client import AsyncClient
from orchestrator.events import OUTPUT, SANDBOX_HELD
from tests.place import Place

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

LINES = 5000
VIEWERS = 50
#: A thousand lines a second by its own clock; says at the end how long that took it.
WORK = f"""
import sys, time
began = time.monotonic()
for at in range({LINES}):
    late = began + at / 1000 - time.monotonic()
    if late > 0:
        time.sleep(late)
    sys.stdout.write(f"line {{at}} {{'x' * 500}}\\n")
    sys.stdout.flush()
print(f"took {{time.monotonic() - began:.3f}}", flush=True)
"""


async def finished(client: AsyncClient, id: str) -> float:
    """Wait for the end; the seconds the work says it took."""
    execution = client.execution(id)
    record = await execution.wait()
    assert record.outcome is not None and record.outcome.kind == "SUCCEEDED", record.outcome
    last = b"".join([event.body async for event in execution.events(tail=20) if event.body is not None])
    took = re.search(rb"took ([0-9.]+)", last)
    assert took is not None
    return float(took[1])


async def come_and_go(client: AsyncClient, id: str, seed: int) -> list[int]:
    """Numbers of all events, seen over connections that are dropped at random."""
    rng = random.Random(seed)
    seen: list[int] = []
    while True:
        stay = rng.randint(1, 40)
        async with aclosing(client.execution(id).batches(after=str(seen[-1]) if seen else "")) as batches:
            async for batch in batches:
                seen += [event.seq for event in batch.events]
                if batch.closed:
                    return seen
                stay -= 1
                if not stay:
                    break
        await asyncio.sleep(rng.random() / 2)  # away for a while


def stalled(place: Place, id: str) -> socket.socket:
    """A viewer that asks and never reads."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    # With a large one the kernel alone takes 2.6 MB on loopback: nearly all there is to send.
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    line.connect(("127.0.0.1", place.port))
    line.sendall(
        f"GET /v1/executions/{id}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {place.token}\r\n"
        "Accept: text/event-stream\r\n\r\n".encode()
    )
    return line


async def test_a_stalled_viewer_and_fifty_that_come_and_go(own_place: Place) -> None:
    place = own_place
    async with AsyncClient(place.url, place.token) as client:
        command = ["python3", "-c", WORK]
        alone_s = await finished(client, (await client.submit(command=command)).id)
        execution = await client.submit(command=command)
        with stalled(place, execution.id):
            watching = [asyncio.create_task(come_and_go(client, execution.id, seed)) for seed in range(VIEWERS)]
            watched_s = await finished(client, execution.id)
            everything = await asyncio.gather(*watching)
            tail = (await execution.refresh()).tail
            for seen in everything:
                assert seen == list(range(1, tail + 1))
            history = [event async for event in execution.events()]
            assert not [event for event in history if event.type == SANDBOX_HELD]
            output = b"".join(event.body for event in history if event.type == OUTPUT and event.body)
            assert output.count(b"\n") == LINES + 1
            while await cut(place) < 1:
                await asyncio.sleep(0.2)
            assert await cut(place) == 1
        told = {"lines": LINES, "alone_s": alone_s, "watched_s": watched_s, "viewers": VIEWERS + 1, "events": tail}
        print(json.dumps(told))


async def cut(place: Place) -> float:
    """How many viewers the server has cut for taking nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
    head = f"Host: localhost\r\nAuthorization: Bearer {place.token}\r\nConnection: close"
    writer.write(f"GET /metrics HTTP/1.1\r\n{head}\r\n\r\n".encode())
    text = await reader.read()
    writer.close()
    found = re.search(rb'carrel_viewers_dropped_total\{kind="sse"\} ([0-9.]+)', text)
    return float(found[1]) if found else 0.0
