"""What the bare parts cost in the same run: Docker without Carrel, Redis without Carrel. Knows nothing of Carrel."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis.asyncio

LABEL = "carrel.bench"


@contextlib.contextmanager
def container(engine: Any, image: str, argv: list[str], **options: Any) -> Iterator[Any]:
    """A created container of the sandbox's image with the engine's default network; removed whatever happens."""
    made = engine.containers.create(
        image, argv, entrypoint=[], labels={LABEL: "1"}, stdin_open=True, user="1000", **options
    )
    try:
        yield made
    finally:
        made.remove(force=True)


def run_ms(engine: Any, image: str) -> float:
    """`docker run image echo`: create, attach, start, first byte."""
    begin = time.monotonic()
    with container(engine, image, ["/bin/echo", "x"]) as made:
        stream = made.attach_socket(params={"stdout": 1, "stream": 1})
        made.start()
        stream._sock.recv(16)
        taken = time.monotonic() - begin
        stream.close()
    return taken * 1000


def exec_ms(made: Any) -> float:
    """`docker exec container echo`: first byte."""
    begin = time.monotonic()
    api = made.client.api
    call = api.exec_create(made.id, ["/bin/echo", "x"])
    stream = api.exec_start(call["Id"], socket=True)
    stream._sock.recv(16)
    taken = time.monotonic() - begin
    stream.close()
    return taken * 1000


def starts_s(engine: Any, image: str, count: int, at_once: int) -> float:
    """Seconds the engine itself needs to create and start `count` containers, `at_once` at a time, without a
    network."""

    def one(_: int) -> Any:
        made = engine.containers.create(
            image, ["/bin/sleep", "300"], entrypoint=[], labels={LABEL: "1"}, network_disabled=True
        )
        made.start()
        return made

    begin = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        made = list(pool.map(one, range(count)))
        taken = time.monotonic() - begin
        list(pool.map(lambda c: c.remove(force=True), made))
    return taken


def end_ms(engine: Any, image: str) -> float:
    """`docker kill` until it has ended."""
    with container(engine, image, ["/bin/cat"]) as made:
        made.start()
        begin = time.monotonic()
        made.kill()
        made.wait()
    return (time.monotonic() - begin) * 1000


def kill_ms(made: Any, log: Iterator[bytes]) -> float:
    """`docker kill -s INT`: until the program's handler printed its own monotonic clock."""
    begin = time.monotonic_ns()
    made.kill("SIGINT")
    return (int(next(log).split()[-1]) - begin) / 1e6


def logs_mb_s(engine: Any, image: str, size_mb: int) -> float:
    """`docker logs -f` of a program that writes 64 KiB blocks, with the engine's default log driver."""
    argv = ["/bin/sh", "-c", f"sleep 1; exec dd if=/dev/zero bs=65536 count={size_mb * 16} 2>/dev/null"]
    with container(engine, image, argv) as made:
        made.start()
        got, begin = 0, 0.0
        for chunk in made.logs(stream=True, follow=True):
            begin = begin or time.monotonic()
            got += len(chunk)
        return got / 1e6 / (time.monotonic() - begin)


@contextlib.asynccontextmanager
async def bare_redis(url: str) -> AsyncIterator[Any]:
    client: Any = redis.asyncio.Redis.from_url(url)
    try:
        yield client
    finally:
        await client.aclose()


async def xadd_to_xread_ms(url: str, count: int) -> list[float]:
    """One XADD with AOF always until a blocked XREAD of another connection has it."""
    taken: list[float] = []
    async with bare_redis(url) as writer, bare_redis(url) as reader:
        key = f"bench:{uuid.uuid4().hex}"
        last = b"0-0"
        await writer.xadd(key, {"a": "0"})
        await reader.xread({key: last})
        last = (await writer.xrevrange(key, count=1))[0][0]
        for _ in range(count):
            waiting = asyncio.create_task(reader.xread({key: last}, block=5000))
            await asyncio.sleep(0.002)
            begin = time.monotonic()
            await writer.xadd(key, {"a": "0"})
            answer = await waiting
            taken.append((time.monotonic() - begin) * 1000)
            last = answer[0][1][-1][0]
        await writer.delete(key)
    return taken


async def xadd_rate(url: str, count: int, batch: int, size_bytes: int) -> float:
    """Events a second that plain pipelined XADDs reach, `batch` in a round trip."""
    body = b"x" * size_bytes
    async with bare_redis(url) as writer:
        key = f"bench:{uuid.uuid4().hex}"
        begin = time.monotonic()
        for _ in range(count // batch):
            pipe = writer.pipeline(transaction=False)
            for _ in range(batch):
                pipe.xadd(key, {"d": body})
            await pipe.execute()
        taken = time.monotonic() - begin
        await writer.delete(key)
    return count // batch * batch / taken
