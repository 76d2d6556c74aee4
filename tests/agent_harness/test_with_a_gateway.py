"""The harness before the real gateway on a real store: no answer is paid for twice, no deed is done twice, and what the
platform knows counts for more than what /state remembers."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from orchestrator.events import BUDGET_EXCEEDED, INTENT_IN_DOUBT, INTENT_RECORDED, INTENT_SETTLED
from orchestrator.execution import Budget
from orchestrator.intents import Decision, IntentState
from orchestrator.models import ModelApi, ModelPolicy, Price, Provider
from tests.agent_harness.desk import APIS, Desk, Turn, bash, eventually, use
from tests.agent_harness.journal_front import Front, fronted
from tests.agent_harness.test_kills import FAST, FULL, STEPS, Watch, lives, task
from tests.contracts.redis_store import Store

SLOW = "echo x >> ../marks; while [ ! -e go ]; do sleep 0.02; done; echo ended"


@asynccontextmanager
async def before_a_gateway(
    store: Store,
    folder: Path,
    short_dir: Path,
    turns: Sequence[Turn],
    *,
    api: str = APIS[0],
    budget: Budget | None = None,
) -> AsyncIterator[tuple[Desk, Front]]:
    """The desk's blocking calls belong in `asyncio.to_thread`: the gateway is served by this loop."""
    desk = await asyncio.to_thread(lambda: Desk(folder, turns, api=api).__enter__())
    try:
        provider = Provider("scripted", desk.model.url, tuple(ModelApi))
        policy = ModelPolicy(providers=(provider,), prices={"*": Price(1_000_000, 1_000_000)})
        async with fronted(store, short_dir, policy, budget) as front:
            url = front.environment["CARREL_GATEWAY"]
            desk.environ.update(front.environment, MODEL="scripted", MODEL_API=api, MODEL_RETRY_S="20")
            desk.environ.update(ANTHROPIC_BASE_URL=url, OPENAI_BASE_URL=f"{url}/v1")
            try:
                yield desk, front
            finally:
                await asyncio.to_thread(desk.__exit__)
    finally:
        await asyncio.to_thread(desk.__exit__)


async def intent(front: Front, key: str) -> IntentState:
    return (await front.store.intents.get(front.lease.execution_id, key)).state


@pytest.mark.parametrize("api", APIS)
async def test_every_deed_is_an_intent_and_nothing_else_is(
    store: Store, tmp_path: Path, short_dir: Path, api: str
) -> None:
    turns = [
        bash("echo a; exit 2", effect="none"),
        use("write", path="f", content="one"),
        use("edit", path="f", old="one", new="two"),
        use("read", path="f"),
        {"text": "Done."},
    ]
    async with before_a_gateway(store, tmp_path, short_dir, turns, api=api) as (at, front):
        assert await asyncio.to_thread(at.run) == 0
        recorded = [event.data for event in await store.told(INTENT_RECORDED)]
        assert [(e["key"], e["kind"], e["effect"]) for e in recorded] == [
            ("1.0", "bash", "none"),
            ("2.0", "write", "idempotent"),
            ("3.0", "edit", "idempotent"),
        ]
        assert recorded[0]["summary"] == "echo a; exit 2"
        states = [await intent(front, key) for key in ("1.0", "2.0", "3.0")]
        assert states == [IntentState.FAILED, IntentState.DONE, IntentState.DONE]


@pytest.mark.parametrize("seed", FAST[:1] + FULL[:10])
@pytest.mark.parametrize("everything", [False, True])
async def test_killed_at_random_no_answer_is_paid_for_twice(
    store: Store, tmp_path: Path, short_dir: Path, seed: int, everything: bool
) -> None:
    async with before_a_gateway(store, tmp_path, short_dir, task()) as (at, _):
        await asyncio.to_thread(lives, at, random.Random(2000 + seed), Watch(at), everything=everything)
        stats = at.model.counts.stats()
        asked = [(tally["begun"], tally["whole"]) for tally in stats["by_digest"].values()]
        assert asked == [(1, 1)] * (STEPS + 2)
        marks = Counter((tmp_path / "marks").read_text().split())
        assert not [step for step, times in marks.items() if times > 1]
        doubted = {event.data["key"] for event in await store.told(INTENT_IN_DOUBT)}
        assert all(marks[str(step)] == 1 or f"{step + 1}.0" in doubted for step in range(STEPS))
        assert everything or not doubted
        assert at.result()["text"] == "Done."


async def test_what_an_older_state_has_forgotten_is_taken_from_the_record(
    store: Store, tmp_path: Path, short_dir: Path
) -> None:
    turns = [
        bash("echo one >> ../marks; echo 1"),
        bash("echo two >> ../marks; echo 2", effect="once"),
        {"text": "Done."},
    ]
    async with before_a_gateway(store, tmp_path, short_dir, turns) as (at, _):
        assert await asyncio.to_thread(at.run) == 0
        shutil.rmtree(at.state)  # a cut from before everything
        assert await asyncio.to_thread(at.run, EXECUTION_RESUMED="1") == 0
        assert (tmp_path / "marks").read_text() == "one\ntwo\n"
        assert at.text("2.0") == "2" and at.result()["text"] == "Done."
        assert at.model.counts.stats()["whole"] == 3  # the second life was answered from the record


async def test_what_was_begun_after_the_cut_is_in_doubt(store: Store, tmp_path: Path, short_dir: Path) -> None:
    turns = [bash(SLOW, wait_s=900, effect="once"), {"text": "I see."}]
    async with before_a_gateway(store, tmp_path, short_dir, turns) as (at, _):
        at.start()
        await asyncio.to_thread(eventually, lambda: (tmp_path / "marks").exists())
        await asyncio.to_thread(at.kill)
        at.end_commands()
        shutil.rmtree(at.state)
        assert await asyncio.to_thread(at.run, EXECUTION_RESUMED="1") == 0
        assert at.text("1.0").startswith("IN DOUBT") and (tmp_path / "marks").read_text() == "x\n"
        assert [event.data["key"] for event in await store.told(INTENT_IN_DOUBT)] == ["1.0"]


@pytest.mark.parametrize("decision", list(Decision))
async def test_a_person_settles_it_and_the_model_is_told(
    store: Store, tmp_path: Path, short_dir: Path, decision: Decision
) -> None:
    wait = bash("while [ ! -e go ]; do sleep 0.02; done", wait_s=900, effect="none")
    turns = [bash(SLOW, wait_s=900), wait, {"text": "I see."}]
    async with before_a_gateway(store, tmp_path, short_dir, turns) as (at, front):
        at.start()
        await asyncio.to_thread(eventually, lambda: (tmp_path / "marks").exists())
        await asyncio.to_thread(at.kill)
        at.end_commands()
        at.start(EXECUTION_RESUMED="1")
        await asyncio.to_thread(at.wait_for, "tool_call", lambda event: event["id"] == "2.0")
        assert await intent(front, "1.0") is IntentState.IN_DOUBT
        execution = front.lease.execution_id
        await store.intents.settle(execution, "1.0", decision, result="it was the mail to Ada", by="ada")
        assert len(await store.told(INTENT_SETTLED)) == 1
        (at.workspace / "go").touch()
        assert await asyncio.to_thread(at.end) == 0
        said = at.said_to_model()
        assert "a person settled call 1.0" in said
        assert (decision is Decision.RETRY) == ("may be run again" in said)
        assert (decision is Decision.RETRY) != ("it was the mail to Ada" in said)
        assert (tmp_path / "marks").read_text() == "x\n"


async def test_a_store_that_is_away_is_waited_for(store: Store, tmp_path: Path, short_dir: Path) -> None:
    turns = [bash("echo x >> ../marks"), {"text": "Done."}]
    async with before_a_gateway(store, tmp_path, short_dir, turns) as (at, front):
        front.faults += [503, "", 503, "hang up", "half", "half", 503, "half", 503]
        assert await asyncio.to_thread(at.run) == 0
        assert (tmp_path / "marks").read_text() == "x\n" and at.model.counts.stats()["whole"] == 2


async def test_the_budget_ends_it_with_the_figures(store: Store, tmp_path: Path, short_dir: Path) -> None:
    used = {"usage": {"input_tokens": 30_000, "output_tokens": 100}}
    turns = [{**bash("echo 1"), **used}, {**bash("echo 2"), **used}, {"text": "Done."}]
    async with before_a_gateway(store, tmp_path, short_dir, turns, budget=Budget(micros=50_000)) as (at, _):
        assert await asyncio.to_thread(at.run, MAX_OUTPUT_TOKENS="1000", LIMIT_MICROS="50000") == 3
        assert at.result()["stop_reason"] == "budget" and "50000" in at.result()["text"]
        assert at.model.counts.stats()["whole"] <= 2


async def test_what_is_spent_already_is_asked_before_a_call(store: Store, tmp_path: Path, short_dir: Path) -> None:
    used = {"usage": {"input_tokens": 30_000, "output_tokens": 100}}
    turns = [{**bash(f"echo {i}"), **used} for i in range(9)]
    async with before_a_gateway(store, tmp_path, short_dir, turns, budget=Budget(micros=60_000)) as (at, _):
        assert await asyncio.to_thread(at.run, MAX_OUTPUT_TOKENS="1000", LIMIT_MICROS="60000") == 3
        assert at.result()["text"] == "Stopped: $0.060200 of $0.060000 are spent."
        assert at.model.counts.stats()["whole"] == 2 and not await store.told(BUDGET_EXCEEDED)
