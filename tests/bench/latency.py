"""What a person waits for: time to interactive, a burst of submits, steering, interrupt. Each beside a bare part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from orchestrator.client import AsyncExecution
from orchestrator.execution import Resources
from tests.bench import programs, yardsticks
from tests.bench.figures import Figure, Samples
from tests.bench.site import Site

START_CONCURRENCY = 3  # the setting's default


async def first_output(execution: AsyncExecution) -> float:
    """The monotonic second at which the first output byte was in our hands."""
    async with aclosing(execution.batches()) as batches:
        async for batch in batches:
            for event in batch.events:
                if event.body:
                    return time.monotonic()
    raise RuntimeError(f"{execution.id} ended without output: {(await execution.refresh()).outcome}")


@asynccontextmanager
async def running(site: Site, program: str, *argv: str, **spec: Any) -> AsyncIterator[AsyncExecution]:
    """An execution of one of the programs, ended and removed at the end."""
    execution = await site.client.submit(command=["python3", "-c", program, *argv], **spec)
    try:
        yield execution
    finally:
        await execution.delete(force=True)


async def tti_cold(site: Site) -> list[Figure]:
    """Submit over HTTP until the first output byte is in the client's hands; beside a bare `docker run`, in turn."""
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(12):
        begin = time.monotonic()
        execution = await site.client.submit(command=["/bin/echo", "x"])
        ours.append((await first_output(execution) - begin) * 1000)
        await execution.wait()
        await execution.delete()
        bare.append(await asyncio.to_thread(yardsticks.run_ms, site.engine, site.image))
    return [Figure("tti_cold", Samples(tuple(ours)), Samples(tuple(bare)), "docker run", "≤ 0.8 × docker run")]


async def burst(site: Site, count: int = 40) -> list[Figure]:
    """Many submits at once until all are interactive; beside the engine's own create+start of as many."""
    small = Resources(memory_bytes=128 << 20)
    begin = time.monotonic()
    executions = await asyncio.gather(
        *(
            site.client.submit(command=["/bin/cat"], resources={"memory_bytes": small.memory_bytes, "cpus": 0.5})
            for _ in range(count)
        )
    )
    for execution in executions:
        await execution.send("x")
    await asyncio.gather(*(first_output(execution) for execution in executions))
    ours = time.monotonic() - begin
    await asyncio.gather(*(execution.delete(force=True) for execution in executions))
    bare = await asyncio.to_thread(yardsticks.starts_s, site.engine, site.image, count, START_CONCURRENCY)
    return [
        Figure(
            "burst",
            Samples((ours,), "s"),
            Samples((bare,), "s"),
            f"{count} bare starts",
            "≤ 1.15 × the engine's rate",
            note=f"{count} at once",
        )
    ]


async def steer(site: Site, count: int = 200) -> list[Figure]:
    """send() until the harness has the line; both read the same monotonic clock. Beside XADD → XREAD."""
    ours: list[float] = []
    begin = 0
    async with running(site, programs.ECHO_CLOCK) as execution, aclosing(execution.events()) as events:
        async for event in events:
            text = (event.body or b"").decode()
            if text.startswith("got"):
                ours.append((int(text.split()[1]) - begin) / 1e6)
            if text.startswith(("got", "ready")):
                if len(ours) == count:
                    break
                begin = time.monotonic_ns()
                await execution.send("x")
    bare = await yardsticks.xadd_to_xread_ms(site.redis_url, count)
    return [Figure("steer", Samples(tuple(ours)), Samples(tuple(bare)), "XADD → XREAD", "≤ 3 ms p50, ≤ 15 ms p99")]


async def interrupt(site: Site, count: int = 40) -> list[Figure]:
    """interrupt() until the program's SIGINT handler runs; beside `docker kill -s INT`."""
    ours: list[float] = []
    begin = 0
    async with running(site, programs.INTERRUPTED) as execution, aclosing(execution.events()) as events:
        async for event in events:
            text = (event.body or b"").decode()
            if text.startswith("int"):
                ours.append((int(text.split()[1]) - begin) / 1e6)
            if text.startswith(("int", "ready")):
                if len(ours) == count:
                    break
                begin = time.monotonic_ns()
                await execution.interrupt()

    def bare() -> list[float]:
        argv = ["python3", "-c", programs.INTERRUPTED]
        with yardsticks.container(site.engine, site.image, argv) as made:
            made.start()
            log = made.logs(stream=True, follow=True)
            next(log)
            return [yardsticks.kill_ms(made, log) for _ in range(count)]

    return [
        Figure(
            "interrupt",
            Samples(tuple(ours)),
            Samples(tuple(await asyncio.to_thread(bare))),
            "docker kill -s INT",
            "≤ 10 ms p50",
        )
    ]
