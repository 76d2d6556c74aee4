"""So many executions under so many faults: run them, break things, judge.

`python -m tests.faults.campaign` for people.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ulid import ULID

from orchestrator import events
from orchestrator.client import AsyncClient
from orchestrator.errors import CarrelError
from orchestrator.events import Cursor
from orchestrator.execution import Execution, Limits, Spec
from tests.faults.ground import Ground, ground
from tests.faults.judge import Verdict, judge
from tests.faults.nemesis import MISCHIEF, Nemesis

#: A harness without forks: it prints a burst, waits on a pipe nobody writes to, until the last line.
HARNESS = (
    "echo start >> starts; exec 9<> <(:); n=0; while ((n < $1)); do ((n++)); echo $n; "
    "if ((n % $2 == 0)); then read -t $3 -u 9; fi; done; exit 0"
)


@dataclass(frozen=True)
class Campaign:
    """What is asked for. Each harness prints its lines in about `last_s` seconds if nothing holds it."""

    seed: int
    kills: int
    executions: int
    lines: int
    workers: int = 3
    viewers: int = 4
    last_s: float = 20.0
    worker_argv: Sequence[str] = ("-m", "orchestrator", "worker")
    environment: Mapping[str, str] = field(default_factory=dict)
    mischief: Mapping[str, int] = field(default_factory=lambda: MISCHIEF)


@dataclass
class Result:
    verdict: Verdict
    broken: Counter[str]
    logs: str


async def submit(here: Ground, count: int, lines: int, last_s: float) -> list[Execution]:
    """So many counting executions."""
    bursts = 50
    argv = ("bash", "-c", HARNESS, "harness", str(lines), str(max(lines // bursts, 1)), f"{last_s / bursts:.3f}")
    made = []
    for _ in range(count):
        spec = Spec(harness="command", command=argv, limits=Limits(deadline_s=600))
        done = await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")
        made.append(done.execution)
    return made


async def all_ended(here: Ground, executions: Sequence[Execution]) -> None:
    for execution in executions:
        async for page in here.history.follow(execution.id, Cursor()):
            if page.closed:
                break


async def watch(here: Ground, execution: Execution, verdict: list[str]) -> None:
    """A viewer through the api, from the first event to the last, over whatever breaks."""
    async with AsyncClient(here.url, await here.token()) as client:
        seen = 0
        try:
            async for event in client.execution(execution.id).events():
                seen += 1
                if event.seq != seen:
                    verdict.append(f"a viewer of {execution.id} saw {event.seq} where {seen} was due")
                    return
        except CarrelError as failure:
            verdict.append(f"a viewer of {execution.id} was told {failure.code}: {failure}")
            return
        if event.type != events.FINISHED:
            verdict.append(f"a viewer of {execution.id} saw {event.type} as the end")


async def run(asked: Campaign) -> Result:
    async with ground(**asked.environment) as here:
        await here.api()
        for _ in range(asked.workers):
            await here.worker(argv=asked.worker_argv)
        executions = await submit(here, asked.executions, asked.lines, asked.last_s)
        seen_by_viewers: list[str] = []
        viewers = executions[:: max(len(executions) // asked.viewers, 1)] if asked.viewers else []
        async with asyncio.TaskGroup() as beside:
            for execution in viewers:
                beside.create_task(watch(here, execution, seen_by_viewers))
            nemesis = Nemesis(here, asked.seed, mischief=asked.mischief)
            await nemesis.run(asked.kills)
            await all_ended(here, executions)
        verdict = await judge(here, executions, asked.lines)
        verdict.odd += seen_by_viewers
        return Result(verdict, nemesis.done, here.last_logs())


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, default in (("seed", 1), ("kills", 100), ("executions", 60), ("lines", 3000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = Campaign(**vars(parser.parse_args()))
    result = asyncio.run(run(asked))
    if not result.verdict.clean:
        print(result.logs)
        print("\n".join(result.verdict.odd))
    print(f"broken: {dict(result.broken)}; adoptions={result.verdict.adoptions} restarts={result.verdict.restarts}")
    print(result.verdict.line(result.broken.total(), asked.seed))
    return 0 if result.verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
