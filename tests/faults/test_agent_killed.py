"""One agent with 30 steps, and SIGKILL at random moments to its harness, its container and its worker: it finishes,
no model call is paid twice unless its answer broke off and the history says so, and no effect happens twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import uuid
from collections import Counter
from pathlib import Path
from typing import Any, Final

import docker
import pytest
from ulid import ULID

from orchestrator import events
from orchestrator.catalogue.folder import shipped
from orchestrator.events import Event
from orchestrator.execution import Egress, Execution, Limits, OutcomeKind, RetryPolicy, Spec
from orchestrator.intents import IntentState
from orchestrator.lifecycle import ExecutionState
from orchestrator.stores.redis import Keys
from orchestrator.stores.redis.intents import RedisIntents
from tests.faults.ground import Ground, Process, ground
from tests.faults.judge import told
from tests.faults.outside import ADDRESS, KEY, NAME, Outside

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(900), pytest.mark.xdist_group("agent-killed")]

STEPS: Final = 30
KINDS: Final = ("worker", "container", "harness")


def script() -> dict[str, Any]:
    """Every third step acts on the world outside, by a `once` call; the others write a line into the workspace."""
    turns: list[dict[str, Any]] = []
    for step in range(STEPS):
        if step % 3 == 1:
            act = {"command": f"curl -sS http://{NAME}/{step}", "effect": "once"}
            turns.append({"calls": [{"name": "bash", "arguments": act}], "chunk_s": 0.02})
        else:
            turns.append({"text": f"Step {step}.", "run": f"echo {step} >> log; sleep 0.2", "chunk_s": 0.05})
    return {"turns": turns, "end": {"text": "All steps are behind me."}}


@pytest.mark.parametrize("kills", [12, pytest.param(50, marks=pytest.mark.full)])
async def test_killed_again_and_again_it_finishes_and_nothing_happens_twice(
    kills: int, short_dir: Path, sandbox_image: str
) -> None:
    seed = int(os.environ.get("SEED", random.randrange(1 << 30)))
    print(f"SEED={seed}")
    environment = {
        "CARREL_DRIVER": "docker",
        "CARREL_IMAGE": sandbox_image,
        "CARREL_EGRESS_PRIVATE_ALLOW": f"{ADDRESS}/32",
        "ANTHROPIC_API_KEY": KEY,
    }
    with Outside(short_dir, f"crl{uuid.uuid4().hex[:8]}", script()) as outside:
        async with ground(**environment, ANTHROPIC_BASE_URL=outside.model) as here:
            for _ in range(2):
                process = await here.worker()
                await process.kill()  # it began out here, where the model is not
                process.argv = outside.within(*process.argv)
                await process.start()
            execution = await submitted(here)
            done = await kill(here, execution, kills, random.Random(seed))
            await ended(here, execution)
            await judged(here, execution, outside, done)


async def submitted(here: Ground) -> Execution:
    spec = Spec(
        task="Do all the steps.",
        harness="agent",
        declared=shipped().get("agent"),
        model="claude-scripted",
        egress=Egress((NAME,)),
        limits=Limits(deadline_s=600),
        retry=RetryPolicy(max_failures=20, backoff_s=0.1, backoff_max_s=0.5),
    )
    return (await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")).execution


async def kill(here: Ground, execution: Execution, kills: int, dice: random.Random) -> Counter[str]:
    """So many times, unless it ends before."""
    done: Counter[str] = Counter()
    while done.total() < kills:
        await asyncio.sleep(dice.uniform(0.1, 1.2))
        record = await here.executions.get(execution.id)
        if record.ended:
            break
        kind = dice.choice(KINDS)
        if kind == "worker":
            worker: Process = dice.choice(here.workers)
            await worker.kill()
            await worker.start()
            done[kind] += 1
        elif record.state is ExecutionState.RUNNING and record.sandbox_id is not None:
            done[kind] += await asyncio.to_thread(_kill_inside, record.sandbox_id, kind)
    return done


def _kill_inside(sandbox_id: str, kind: str) -> int:
    """SIGKILL to init, and so to all of it; or to the process that is the harness. How many were."""
    client = docker.APIClient(version="1.41")
    try:
        init = int(client.inspect_container(f"carrel-{sandbox_id}")["State"]["Pid"])
    except docker.errors.NotFound:
        return 0
    finally:
        client.close()
    if init == 0:
        return 0
    namespace = _link(f"/proc/{init}/ns/pid")
    victims = [init] if kind == "container" else [pid for pid in _pids() if _is_harness(pid, namespace)]
    killed = 0
    for pid in victims[:1]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def _pids() -> list[int]:
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _is_harness(pid: int, namespace: str) -> bool:
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return _link(f"/proc/{pid}/ns/pid") == namespace and any(word.endswith(b"/carrel-agent") for word in words)
    return False


def _link(path: str) -> str:
    with contextlib.suppress(OSError):
        return str(Path(path).readlink())
    return ""


async def ended(here: Ground, execution: Execution) -> None:
    async for page in here.history.follow(execution.id, events.Cursor()):
        if page.closed:
            return


async def judged(here: Ground, execution: Execution, outside: Outside, done: Counter[str]) -> None:
    history = await told(here, execution)
    record = await here.executions.get(execution.id)
    story = f"{dict(done)}, attempt {record.attempt}, {record.outcome}\n{here.last_logs()}"
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED, story
    print(story.splitlines()[0])
    _paid_once(history, outside.stats(), story)

    intents = RedisIntents(here.server, Keys(here.installation))
    known = await intents.list(execution.id, limit=1000)
    doubted = {intent.summary for intent in known if intent.state is IntentState.IN_DOUBT}
    happened = outside.happened()
    assert not {path: count for path, count in happened.items() if count > 1}, story
    for step in range(1, STEPS, 3):
        if f"/{step}" not in happened:
            assert any(f"{NAME}/{step}" in summary for summary in doubted), (step, story)

    assert record.sandbox_id is not None
    log = (here.workspaces.slot(record.sandbox_id).path / "vol" / "workspace" / "log").read_text().split()
    assert len(log) == len(set(log)), story
    for step in (step for step in range(STEPS) if step % 3 != 1):
        if str(step) not in log:
            assert any(f"echo {step} " in summary for summary in doubted), (step, story)


def _paid_once(history: list[Event], stats: dict[str, Any], story: str) -> None:
    """Of each completion one; each one more is a call whose answer broke off, as the history says."""
    calls = stats["by_digest"]
    begun = sum(int(call["begun"]) for call in calls.values())
    cut = sum(event.type == events.MODEL_CUT for event in history)
    assert len(calls) == STEPS + 1, (len(calls), story)
    assert all(int(call["whole"]) >= 1 for call in calls.values()), story
    assert begun - len(calls) <= cut, (begun, len(calls), cut, story)
