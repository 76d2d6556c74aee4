"""The way out of a real sandbox: its own loopback, up, and behind it the worker's gateway, whoever that is by then."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orchestrator.gateways import OUTLET_PORT
from orchestrator.link import OwnerLink
from tests.sandboxes import Bench, DockerBench, ScriptedBench, until

pytestmark = pytest.mark.root

ANSWER = os.urandom(1 << 20) * 8
CLIENT = """
import hashlib, socket, sys
line = socket.create_connection(("localhost", int(sys.argv[1])))
line.sendall(b"question")
print("asked", flush=True)
digest = hashlib.sha256()
while data := line.recv(1 << 16):
    digest.update(data)
print(digest.hexdigest(), flush=True)
"""


@pytest.fixture(params=["scripted", pytest.param("docker", marks=pytest.mark.docker)])
async def bench(request: pytest.FixtureRequest, short_dir: Path, installation: str) -> AsyncIterator[Bench]:
    made: Bench
    if request.param == "scripted":
        made = ScriptedBench(short_dir)
    else:
        made = DockerBench(short_dir, request.getfixturevalue("sandbox_image"), installation)
    try:
        yield made
    finally:
        await made.close()


async def started(bench: Bench, owner: OwnerLink, *argv: str) -> None:
    fields = {"argv": argv, "env": {}, "cwd": "/workspace", "stdin": "none", "output": "bytes"}
    await owner.start({**fields, "outlet_port": OUTLET_PORT}, b"")


async def printed_until_exit(owner: OwnerLink) -> bytes:
    printed = b""
    while True:
        for frame in owner.take(max_frames=100, max_bytes=1 << 20):
            if frame.verb == "exit":
                return printed
            printed += frame.payload if frame.verb == "output" else b""
        assert owner.lost is None
        await asyncio.sleep(0.01)


class Gateway:
    """Listens at the slot's place, in that of whoever did; gives each connection to who asks for it."""

    def __init__(self, slot_gateway: Path) -> None:
        self._at = slot_gateway
        self.taken: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def __aenter__(self) -> Gateway:
        new = self._at.with_name("g.new")
        self._server = await asyncio.start_unix_server(lambda *ends: self.taken.put_nowait(ends), new)
        new.rename(self._at)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


async def test_what_is_frozen_finds_its_answer_when_it_goes_on(bench: Bench) -> None:
    """Asked; frozen; the worker dies and the next one answers eight megabytes; thawed; all of it is there."""
    sandbox_id = await bench.opened()
    at = bench.store.slot(sandbox_id).gateway
    async with bench.owner(sandbox_id, epoch=2) as owner:
        async with Gateway(at) as first:
            await started(bench, owner, "python3", "-c", CLIENT, str(OUTLET_PORT))
            reader, writer = await first.taken.get()
            assert await reader.readexactly(8) == b"question"
            await bench.driver.pause(sandbox_id)
            writer.close()
        async with Gateway(at) as second:
            reader, writer = await second.taken.get()
            assert await reader.readexactly(8) == b"question"
            writer.write(ANSWER)
            writer.write_eof()
            await bench.driver.unpause(sandbox_id)
            await writer.drain()
            printed = await printed_until_exit(owner)
            writer.close()
    assert printed.decode().split() == ["asked", hashlib.sha256(ANSWER).hexdigest()]


async def test_the_harness_reaches_the_outlet_and_nothing_behind_it(bench: Bench) -> None:
    sandbox_id = await bench.opened()
    async with bench.owner(sandbox_id, epoch=2) as owner, Gateway(bench.store.slot(sandbox_id).gateway) as gateway:
        await started(bench, owner, "sleep", "1000")

        async def listens() -> bool:
            return (await bench.sh(sandbox_id, f"exec 3<>/dev/tcp/127.0.0.1/{OUTLET_PORT}")).code == 0

        await until(listens, "the outlet listens")
        connect = "import socket; socket.socket(socket.AF_UNIX).connect('/run/carrel/ctl/gateway.sock')"
        ran = await bench.run(sandbox_id, "python3", "-c", connect)
        assert ran.code == 1 and b"PermissionError" in ran.err
        links = await bench.sh(sandbox_id, "cd /sys/class/net 2>/dev/null && echo * || tail -n +3 /proc/net/dev")
        assert links.text.split(":")[0].split() == ["lo"]
        assert gateway.taken.empty()  # who says nothing is not carried
