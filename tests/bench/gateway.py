"""What the gateway adds to a model call: time to the first byte, and how fast a stream passes; beside the same call
made directly. Provider and gateway are processes of their own; the client is the same for both.

The provider answers at once and with everything it has, which no model does: the figures are the gateway's own.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from orchestrator.clock import SystemClock
from orchestrator.events import Entry
from orchestrator.execution import Spec
from orchestrator.executions import Claim
from orchestrator.gateway.token import token_of
from orchestrator.gateway.unix import UnixGateways
from orchestrator.history import Change
from orchestrator.lifecycle import Trigger
from orchestrator.models import ModelApi, ModelPolicy, Provider
from orchestrator.stores import embedded
from orchestrator.stores.redis import Keys, RedisCalls, RedisExecutions, RedisHistory, RedisIntents, Server
from tests.bench.figures import Figure, Samples
from tests.bench.site import Site

SECRET = b"b" * 32
CALLS = 300
STREAMS = 10
DELTAS = 30_000  # of a long stream: 4 MB
CONTEXT_BYTES = 200_000  # of a request as agents send them

Dial = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


def _named(said: dict[str, object]) -> bytes:
    return f"event: {said['type']}\ndata: {json.dumps(said)}\n\n".encode()


def _stream(deltas: int) -> list[bytes]:
    usage = {"input_tokens": 10, "output_tokens": deltas}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "some words, "}}
    return [
        _named({"type": "message_start", "message": {"type": "message", "content": [], "usage": usage}}),
        *[_named(delta)] * deltas,
        _named({"type": "message_stop"}),
    ]


async def _provide() -> None:
    """A provider: `max_tokens` deltas for whoever asks. Prints its port."""
    kept: dict[int, bytes] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                deltas = json.loads(await reader.readexactly(size))["max_tokens"]
                if deltas not in kept:
                    events = _stream(deltas)
                    many = [b"".join(events[n : n + 20]) for n in range(0, len(events), 20)]
                    kept[deltas] = b"".join(f"{len(one):x}\r\n".encode() + one + b"\r\n" for one in many)
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                writer.write(kept[deltas] + b"0\r\n\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _gate(folder: Path, port: str) -> None:
    """A gateway at folder/g.sock. Prints a line when it listens; ends by SIGTERM."""
    server, keys = Server(embedded.ensure(folder).url), Keys("bench")
    executions, history = RedisExecutions(server, keys), RedisHistory(server, keys)
    await executions.submit(Spec(), execution_id="exe_b")
    claim = await executions.claim("w", "h", lease_s=600)
    assert isinstance(claim, Claim)
    placed = Change(trigger=Trigger.CLAIMED, attempt=1, sandbox_id="sbx_b", host="h")
    await history.append(claim.lease, attempt=1, own=1, change=placed)
    provider = Provider("bench", f"http://127.0.0.1:{port}", (ModelApi.MESSAGES,), key="k" * 20)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def tell(entry: Entry) -> None:
        print(entry, file=sys.stderr)

    policy = ModelPolicy((provider,))
    async with UnixGateways(
        policy, RedisCalls(server, keys), RedisIntents(server, keys), SystemClock(), SECRET
    ) as gateways:
        execution = await executions.get("exe_b")
        gateway = await gateways.open(claim.lease, execution, folder / "g.sock", tell=tell, held=lambda: True)
        print("ready", flush=True)
        await stop.wait()
        await gateway.close(grace_s=1)
    await history.aclose()
    await server.aclose()


async def _call(dial: Dial, number: int, deltas: int, context_bytes: int) -> tuple[float, float, int]:
    """Milliseconds to the first byte of the body, seconds to the end, bytes of the body."""
    words = "some words of a context " * (context_bytes // 24)
    body = json.dumps(
        {
            "model": "m",
            "stream": True,
            "max_tokens": deltas,
            "messages": [{"role": "user", "content": f"{number} {words}"}],
        }
    ).encode()
    token = token_of(SECRET, "exe_b")
    reader, writer = await dial()
    begin = time.perf_counter()
    writer.write(
        f"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {token}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    seen = await reader.read(1 << 20)
    first_ms = (time.perf_counter() - begin) * 1000
    size = len(seen)
    while not seen.endswith(b"0\r\n\r\n"):
        piece = await reader.read(1 << 20)
        assert piece, seen
        size += len(piece)
        seen = seen[-8:] + piece
    taken_s = time.perf_counter() - begin
    writer.close()
    return first_ms, taken_s, size


async def gateway(here: Site) -> list[Figure]:
    """`gateway_first_byte`: a small request, and one of 200 kB as agents send them; `gateway_stream`. Needs nothing of
    the site."""
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    started: list[asyncio.subprocess.Process] = []

    async def start(*argv: str) -> str:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", __name__, *argv, stdout=asyncio.subprocess.PIPE
        )
        started.append(process)
        assert process.stdout is not None
        return (await process.stdout.readline()).decode().strip()

    try:
        port = await start("provide")
        assert await start("gate", str(folder), port) == "ready"
        ways: dict[str, Dial] = {
            "direct": lambda: asyncio.open_connection("127.0.0.1", int(port), limit=1 << 20),
            "gateway": lambda: asyncio.open_unix_connection(str(folder / "g.sock"), limit=1 << 20),
        }
        figures = []
        for name, context_bytes, calls in (
            ("gateway_first_byte", 0, CALLS),
            ("gateway_first_byte_200k", CONTEXT_BYTES, CALLS // 3),
        ):
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for number in range(-5, calls):
                for way, dial in ways.items():
                    first_ms, _, _ = await _call(dial, number, 20, context_bytes)
                    if number >= 0:
                        taken[way].append(first_ms)
            figures.append(
                Figure(
                    name,
                    Samples(tuple(taken["gateway"])),
                    Samples(tuple(taken["direct"])),
                    against="the call made directly",
                    note="reserved in Redis, AOF always",
                )
            )
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(STREAMS):
            for way, dial in ways.items():
                _, taken_s, size = await _call(dial, 1_000 + number, DELTAS, 0)
                rates[way].append(size / taken_s / 1e6)
        figures.append(
            Figure(
                "gateway_stream",
                Samples(tuple(rates["gateway"]), "MB/s", more=True),
                Samples(tuple(rates["direct"]), "MB/s", more=True),
                against="the call made directly",
                note=f"{DELTAS} events of 130 bytes; recorded",
            )
        )
        return figures
    finally:
        for process in started:
            process.terminate()
            await process.wait()
        embedded.shutdown(folder)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    uvloop.run(_provide() if sys.argv[1] == "provide" else _gate(Path(sys.argv[2]), sys.argv[3]))
