"""What a person waits for who leaves work and comes back: snapshot, sleep, wake, fork, through a server and Docker.

Both stores, beside what Docker and `cp -a` take for about the same, in turn.

1,000 files; FULL=1 adds 20,000 files and three large ones. Needs root.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from orchestrator.client import AsyncExecution
from orchestrator.events import Event
from tests.bench import yardsticks
from tests.bench.copiers import run_ms
from tests.bench.figures import Figure, Samples
from tests.bench.latency import first_output
from tests.bench.site import Site, site
from tests.bench.trees import Tree, trees

EXEC_S = 900
YARDSTICKS = {
    "snapshot": "cp -a",
    "hibernate": "cp -a, docker kill",
    "wake": "docker run",
    "fork": "cp -a, docker run",
}


async def naps(here: Site) -> list[Figure]:
    """Snapshot and sleep until they are answered, a message until the answer to it, a fork until its first output."""
    figures: list[Figure] = []
    for tree in trees():
        for kind in ("btrfs", "directory"):
            async with site(here.image, workspace_store=kind, pool_size_bytes="32g") as own:
                figures += await _measured(own, tree, f"{kind}, {tree.words}")
    return figures


async def _measured(own: Site, tree: Tree, words: str) -> list[Figure]:
    ours: dict[str, list[float]] = defaultdict(list)
    theirs: dict[str, list[float]] = defaultdict(list)
    execution = await own.client.submit(harness="ledger", task="a bench", name="bench")
    async with aclosing(execution.events()) as events:
        await _hear(events, "up 1 ")
        await _inside(execution, tree.argv("lay", "/workspace"))
        for number in range(tree.rounds):
            await _inside(execution, ["sync"])
            await _inside(execution, tree.argv("change", "/workspace"))
            began = time.monotonic()
            taken = await execution.snapshot(timeout_s=EXEC_S)
            ours["snapshot"].append((time.monotonic() - began) * 1000)
            sandbox_id = (await execution.refresh()).sandbox_id
            assert sandbox_id is not None
            copied_ms = await asyncio.to_thread(_copy_ms, own.workspaces, sandbox_id)
            theirs["snapshot"].append(copied_ms)

            began = time.monotonic()
            (fork,) = await execution.fork(snapshot=taken.id)
            ours["fork"].append((await first_output(fork) - began) * 1000)
            await fork.delete(force=True)
            started_ms = await asyncio.to_thread(yardsticks.run_ms, own.engine, own.image)
            theirs["fork"].append(copied_ms + started_ms)

            began = time.monotonic()
            asleep = await execution.hibernate(hold_s=60)
            ours["hibernate"].append((time.monotonic() - began) * 1000)
            assert asleep.state == "HIBERNATED", asleep.state
            ended_ms = await asyncio.to_thread(yardsticks.end_ms, own.engine, own.image)
            theirs["hibernate"].append(copied_ms + ended_ms)
            await _removed(own, sandbox_id)

            began = time.monotonic()
            await execution.send(f"m{number}")
            ours["wake"].append((await _hear(events, f"got m{number} ") - began) * 1000)
            theirs["wake"].append(await asyncio.to_thread(yardsticks.run_ms, own.engine, own.image))
    await execution.delete(force=True)
    return [
        Figure(f"{verb} ({words})", Samples(tuple(ours[verb])), Samples(tuple(theirs[verb])), against)
        for verb, against in YARDSTICKS.items()
    ]


async def _inside(execution: AsyncExecution, argv: list[str]) -> None:
    done = await execution.exec(argv, timeout_s=EXEC_S)
    if done.exit_code != 0:
        raise RuntimeError(f"{argv[0]} in the sandbox: {done.exit_code} {done.stderr}")


async def _hear(events: AsyncGenerator[Event, None], text: str) -> float:
    """The monotonic second at which it had been said."""
    async for event in events:
        if text in (event.body or b"").decode():
            return time.monotonic()
    raise RuntimeError(f"it ended without saying {text!r}")


async def _removed(own: Site, sandbox_id: str) -> None:
    while await asyncio.to_thread(own.engine.containers.list, all=True, filters={"name": sandbox_id}):
        await asyncio.sleep(0.02)


def _copy_ms(workspaces: Path, sandbox_id: str) -> float:
    source, copy = workspaces / "slots" / sandbox_id / "vol", workspaces / "copy"
    taken = run_ms(f"cp -a {source} {copy}; sync -f {copy}")
    shutil.rmtree(copy)
    return taken
