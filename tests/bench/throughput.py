"""How much goes through: bytes of output, small events to the tail and to a client by each way, many viewers."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing

from orchestrator.client import AsyncExecution
from tests.bench import programs, yardsticks
from tests.bench.figures import Figure, Samples
from tests.bench.latency import running
from tests.bench.site import Site


async def output(site: Site, size_mb: int = 256) -> list[Figure]:
    """A program's 64 KiB writes until its last byte is in the client's hands; beside `docker logs -f`."""
    got, begin = 0, 0.0
    async with running(site, programs.FLOOD, str(size_mb * 16)) as execution:
        async with aclosing(execution.batches()) as batches:
            async for batch in batches:
                for event in batch.events:
                    if event.body:
                        begin = begin or time.monotonic()
                        got += len(event.body)
        taken = time.monotonic() - begin
    if got != size_mb * 16 * 65536:
        raise RuntimeError(f"{got} bytes arrived instead of {size_mb * 16 * 65536}")
    bare = await asyncio.to_thread(yardsticks.logs_mb_s, site.engine, site.image, size_mb)
    return [
        Figure(
            "output",
            Samples((got / 1e6 / taken,), "MB/s", more=True),
            Samples((bare,), "MB/s", more=True),
            "docker logs -f",
            "≥ 100 MB/s; ≥ 2 × docker logs -f",
        )
    ]


async def events(site: Site, count: int = 102_400) -> list[Figure]:
    """200-byte JSON lines end to end: to the history's tail, then the finished history by page, SSE and WebSocket."""
    figures: list[Figure] = []
    bare = Samples((await yardsticks.xadd_rate(site.redis_url, count, 128, 200),), "/s", more=True)

    def figure(name: str, taken: float, reach: str = "") -> Figure:
        return Figure(name, Samples((count / taken,), "/s", more=True), bare, "XADD × 128", reach)

    async with running(site, programs.JSON_LINES, str(count)) as execution:
        begin, first = 0.0, 0
        while True:
            page = await execution.history(tail=1)
            if page.tail > 10 and not begin:
                begin, first = time.monotonic(), page.tail
            if page.closed:
                taken = time.monotonic() - begin
                break
            await asyncio.sleep(0.005)
        figures.append(
            Figure("events", Samples(((page.tail - first) / taken,), "/s", more=True), bare, "XADD × 128", "≥ 50 k/s")
        )
        figures.append(figure("events_page", await _pages(execution)))
        figures.append(figure("events_sse", await _sse(execution)))
        figures.append(figure("events_ws", await _ws(execution)))
    return figures


async def _pages(execution: AsyncExecution) -> float:
    begin, after = time.monotonic(), ""
    while True:
        page = await execution.history(after=after, limit=1000)
        after = page.next
        if page.closed and not page.events:
            return time.monotonic() - begin
        if page.closed and page.up_to_date:
            return time.monotonic() - begin


async def _sse(execution: AsyncExecution) -> float:
    begin = time.monotonic()
    async with aclosing(execution.batches()) as batches:
        async for _ in batches:
            pass
    return time.monotonic() - begin


async def _ws(execution: AsyncExecution) -> float:
    begin = time.monotonic()
    async with execution.channel() as channel:
        async for _ in channel:
            pass
    return time.monotonic() - begin


async def _raw_viewer(site: Site, execution_id: str, sink: list[float], count: int) -> None:
    """An SSE reader of the least cost: the parsing of 300 clients in one process would be what is measured."""
    host, port = site.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    writer.write(
        f"GET /v1/executions/{execution_id}/events HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: text/event-stream\r\n"
        f"Authorization: Bearer {site.token}\r\n\r\n".encode()
    )
    try:
        seen = 0
        while seen < count:
            line = await reader.readline()
            if not line:
                raise RuntimeError("a viewer was cut off")
            if line.startswith(b"data:") and b'"tick ' in line:
                now = time.monotonic_ns()
                for tick in json.loads(line[5:])["data"]["data"].splitlines():
                    sink.append((now - int(tick.split()[2])) / 1e6)
                    seen += 1
    finally:
        writer.close()


async def viewers(site: Site, many: int = 300, rate: int = 100, seconds: int = 10) -> list[Figure]:
    """Each event of one history until each of 300 SSE viewers has it; beside one viewer alone in the same run."""

    async def watched_by(number: int) -> list[float]:
        sink: list[float] = []
        async with running(site, programs.TICKER, str(rate), str(rate * seconds)) as execution:
            watching = [
                asyncio.create_task(_raw_viewer(site, execution.id, sink, rate * seconds)) for _ in range(number)
            ]
            await asyncio.sleep(1)
            await execution.send("go")
            await asyncio.gather(*watching)
        return sink

    alone = await watched_by(1)
    together = await watched_by(many)
    return [
        Figure(
            "viewers",
            Samples(tuple(together)),
            Samples(tuple(alone)),
            "one viewer",
            "p99 ≤ 50 ms",
            note=f"{many} viewers, {rate} events/s; the viewers run on the same two cores",
        )
    ]
