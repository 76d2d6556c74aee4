"""The bundled agent in a real container while its workers come and go in the middle of its model calls: it notices
nothing, and no answer is paid for twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from ulid import ULID

from orchestrator import events
from orchestrator.catalogue import load_catalogue
from orchestrator.events import Cursor, Event
from orchestrator.execution import Execution, OutcomeKind, Spec
from scripted_model import ScriptedModel, read
from tests.faults.ground import Ground, ground

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(180), pytest.mark.xdist_group("agent")]

KEY: Final = "sk-of-the-takeover"
STEPS: Final = 6
SLOW: Final = 3  # the turn whose answer is a long time coming


def script(slowly: dict[str, Any]) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [{"text": f"Step {n}.", "run": f"echo {n} >> done"} for n in range(STEPS)]
    turns[SLOW] |= slowly
    return {"turns": [*turns, {"text": "All done."}]}


@asynccontextmanager
async def site(sandbox_image: str, slowly: dict[str, Any]) -> AsyncIterator[tuple[Ground, ScriptedModel]]:
    with ScriptedModel(read(script(slowly)), key=KEY) as model:
        async with ground(
            CARREL_DRIVER="docker",
            CARREL_IMAGE=sandbox_image,
            CARREL_DEFAULT_MODEL="scripted",
            ANTHROPIC_API_KEY=KEY,
            ANTHROPIC_BASE_URL=model.url,
        ) as here:
            yield here, model


async def submit(here: Ground) -> Execution:
    spec = Spec(task="Do it in steps.", harness="agent", declared=load_catalogue(None).get("agent"))
    return (await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")).execution


async def ended(here: Ground, asked: Execution, *, attempt: int = 1) -> list[Event]:
    """Its whole history, once it has ended well."""
    told: list[Event] = []
    async for page in here.history.follow(asked.id, Cursor()):
        told += page.events
        if page.closed:
            break
    record = await here.executions.get(asked.id)
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED, (record, here.last_logs())
    assert (record.attempt, record.epoch) == (attempt, 2)
    assert record.sandbox_id is not None
    done = here.workspaces.slot(record.sandbox_id).path / "vol" / "workspace" / "done"
    assert done.read_text().split() == [str(n) for n in range(STEPS)], "each step was done once"
    return told


async def under_way(model: ScriptedModel, turn: int) -> None:
    """Wait until the provider is at work on this turn."""
    while not any(one["turn"] == turn and one["begun"] for one in model.counts.stats()["by_digest"].values()):
        await asyncio.sleep(0.01)


async def test_a_worker_that_leaves_waits_for_the_answer(sandbox_image: str) -> None:
    async with site(sandbox_image, {"first_s": 2.0}) as (here, model):
        first = await here.worker(CARREL_LEASE_S="3600", CARREL_DRAIN_GRACE_S="60")
        asked = await submit(here)
        await under_way(model, SLOW)
        await here.worker(CARREL_LEASE_S="3600")
        first.send(signal.SIGTERM)
        told = await ended(here, asked)
        assert first.child is not None and await first.child.wait() == 0
        counted = list(model.counts.stats()["by_digest"].values())
        assert len(counted) == STEPS + 1
        assert [(one["begun"], one["whole"]) for one in counted] == [(1, 1)] * (STEPS + 1)
        usage = [event.data for event in told if event.type == events.USAGE]
        assert [one["replayed"] for one in usage].count(False) == STEPS + 1
        assert not [event for event in told if event.type == events.MODEL_CUT]


async def test_a_worker_that_is_killed_loses_the_call_under_way_and_no_other(sandbox_image: str) -> None:
    async with site(sandbox_image, {"first_s": 2.0}) as (here, model):
        first = await here.worker()
        asked = await submit(here)
        await under_way(model, SLOW)
        await here.worker()
        await first.kill()
        told = await ended(here, asked)
        for one in model.counts.stats()["by_digest"].values():
            assert one["whole"] == 1, "every answer was had once"
            assert one["begun"] == (2 if one["turn"] == SLOW else 1), one
            assert one["begun"] == one["whole"] + one["abandoned"]
        assert sum(event.type == events.MODEL_CUT for event in told) == 1, "and that is told"
        assert not [event for event in told if event.type == "error"], "the agent noticed nothing"


async def test_a_stream_that_broke_off_with_its_worker_is_asked_for_again(sandbox_image: str) -> None:
    async with site(sandbox_image, {"text": "word " * 400, "chunk_s": 0.05}) as (here, model):
        first = await here.worker()
        asked = await submit(here)
        async for page in here.history.follow(asked.id, Cursor()):
            if any(e.type == "agent_message_chunk" and "word word" in str(e.data["text"]) for e in page.events):
                break
        await here.worker()
        await first.kill()
        await ended(here, asked)
        assert all(one["whole"] == 1 for one in model.counts.stats()["by_digest"].values())


def agent_of(record: Execution) -> int:
    """The host's number of its harness's process."""
    assert record.sandbox_id is not None
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                entry.name.isdigit()
                and b"carrel-agent" in (entry / "cmdline").read_bytes()
                and record.sandbox_id in (entry / "mountinfo").read_text()
            ):
                return int(entry.name)
    raise AssertionError("it does not run")


async def test_a_killed_agent_goes_on_and_its_answer_under_way_is_not_lost(sandbox_image: str) -> None:
    async with site(sandbox_image, {"first_s": 1.0}) as (here, model):
        await here.worker()
        asked = await submit(here)
        await under_way(model, SLOW)
        os.kill(agent_of(await here.executions.get(asked.id)), signal.SIGKILL)
        told = await ended(here, asked, attempt=2)
        counted = list(model.counts.stats()["by_digest"].values())
        assert [(one["begun"], one["whole"]) for one in counted] == [(1, 1)] * (STEPS + 1)
        assert [e.data["reason"] for e in told if e.type == events.SANDBOX_LOST] == ["harness_killed"]
        replayed = [e.data["replayed"] for e in told if e.type == events.USAGE]
        assert replayed.count(False) == STEPS + 1 and replayed.count(True) == 1
