"""The client of the journal: it asks again where nothing was decided, and only there."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent_harness.intents import RESULT_BYTES, SUMMARY_BYTES, GatewayAway, IntentError, Journal
from orchestrator.intents import Decision, IntentState
from tests.agent_harness.journal_front import Front


def journal(front: Front, **more: object) -> Journal:
    made = Journal.from_environment(front.environment, **more)
    assert made is not None
    return made


async def begin(asking: Journal, key: str = "k", digest: str = "d", summary: str = "s") -> bool:
    return (await asyncio.to_thread(asking.begin, key, kind="bash", effect="once", summary=summary, digest=digest)).go


async def test_begun_done_and_not_again(front: Front) -> None:
    mine = journal(front)
    assert await begin(mine)
    done = await asyncio.to_thread(mine.finish, "k", ok=True, result="sent\n")
    assert (done.state, done.result, done.run, done.attempt) == ("done", "sent\n", mine.run, 1)
    other = await asyncio.to_thread(journal(front).begin, "k", kind="bash", effect="once", summary="s", digest="d")
    assert (other.go, other.intent) == (False, done)
    assert await asyncio.to_thread(mine.get, "k") == done


@pytest.mark.parametrize("faults", [[503, 503], ["hang up"], ["half"], [503, "half", "hang up", 500]])
async def test_it_asks_again_where_nothing_was_decided(front: Front, faults: list[int | str]) -> None:
    """Also where the begin was written and its answer lost: the same run may ask again and go."""
    mine = journal(front)
    front.faults += faults
    assert await begin(mine)
    front.faults += faults
    assert (await asyncio.to_thread(mine.finish, "k", ok=False, result="no")).state == "failed"
    assert len(front.asked) == 2 + 2 * len(faults)
    assert len(await front.store.told("intent.recorded", "intent.done")) == 2


async def test_a_no_is_final_and_in_words(front: Front) -> None:
    assert await begin(journal(front))
    with pytest.raises(IntentError) as refused:
        await begin(journal(front), digest="another")
    assert refused.value.code == "key_reused" and len(front.asked) == 2
    with pytest.raises(IntentError) as unknown:
        await asyncio.to_thread(journal(front).get, "never begun")
    assert unknown.value.code == "not_found"


async def test_another_run_in_between_is_a_conflict(front: Front) -> None:
    first = journal(front)
    assert await begin(first)
    assert not await begin(journal(front))
    await front.settle(Decision.RETRY)
    assert await begin(journal(front))
    with pytest.raises(IntentError) as late:
        await asyncio.to_thread(first.finish, "k", ok=True, result="")
    assert late.value.code == "conflict"


async def test_a_decision_is_waited_for(front: Front) -> None:
    assert await begin(journal(front))
    mine = journal(front)
    assert not await begin(mine)
    waiting = asyncio.create_task(asyncio.to_thread(mine.decision, "k"))
    while not any(asked.startswith("GET") for asked in front.asked):
        await asyncio.sleep(0.01)
    await front.settle(Decision.DONE, "I looked")
    decided = await waiting
    assert (decided.state, decided.result, decided.settled_by) == (IntentState.DONE, "I looked", "ada")


async def test_a_gateway_that_stays_away_is_said_to_be(front: Front) -> None:
    front.faults += [503] * 1000
    with pytest.raises(GatewayAway) as away:
        await begin(journal(front, patience_s=0.3))
    assert "the store is away" in away.value.message and len(front.asked) > 1
    with socket.socket() as taken:  # bound and not listening: refused at once
        taken.bind(("127.0.0.1", 0))
        front.port = taken.getsockname()[1]
        with pytest.raises(GatewayAway):
            await begin(journal(front, patience_s=0.1))


async def test_asking_ends_when_it_is_told_to(front: Front) -> None:
    front.faults += [503] * 1000
    with pytest.raises(GatewayAway):
        await begin(journal(front, gave_up=lambda: len(front.asked) >= 3))
    assert len(front.asked) == 3


async def test_what_is_too_long_is_cut_and_what_is_no_text_is_mended(front: Front) -> None:
    mine = journal(front)
    assert await begin(mine, summary="é" * SUMMARY_BYTES + "\udcff")
    done = await asyncio.to_thread(mine.finish, "k", ok=True, result="a\udcff" + "ü" * RESULT_BYTES)
    assert done.summary == "é" * (SUMMARY_BYTES // 2)
    assert len(done.result.encode()) <= RESULT_BYTES and done.result.startswith("a�ü")


@pytest.mark.parametrize("gateway", ["127.0.0.1:1", "https://h:1", "unix:/x", "http://"])
def test_an_address_that_is_none_is_refused(gateway: str) -> None:
    with pytest.raises(ValueError, match="CARREL_GATEWAY"):
        Journal.from_environment({"CARREL_GATEWAY": gateway})


def test_without_a_gateway_there_is_no_journal() -> None:
    assert Journal.from_environment({}) is None
