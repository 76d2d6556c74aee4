"""Budgets: what is reserved, what is settled, what happens to the call that would go over."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from orchestrator.calls import ModelUsage
from orchestrator.execution import Budget, BudgetWant
from orchestrator.gateway.estimates import CUT_OUTPUT_TOKENS, IMAGE_TOKENS, if_cut, reserve
from orchestrator.models import ModelApi, Price
from tests.gateway.providers import Asking, answering, by_turns, events, provider, refusing, whole
from tests.gateway.rig import ALL, Reached, Rig, asked, request_bytes, until

M, C, R = ModelApi.MESSAGES, ModelApi.CHAT, ModelApi.RESPONSES


async def raised(rig: Rig, reached: Reached, budget: Budget) -> None:
    """A person raises the budget; the owner reads the record again."""
    await rig.store.executions.want(rig.execution_id, BudgetWant(f"w{budget.micros}", budget))
    reached.gateway.update(await rig.execution())


@pytest.mark.parametrize("api", ALL)
async def test_the_call_that_would_go_over_is_refused_with_the_figures(rig: Rig, api: ModelApi) -> None:
    async with provider(answering(api)) as there:
        reached = await rig.gateway(there.url, budget=Budget(micros=100))
        answer = await reached.ask(api)
        assert answer.status_code == 402
        error = answer.json()["error"]
        assert error["type"] == error["code"] == "budget_exceeded"
        assert (error["limit_micros"], error["spent_micros"], error["reserved_micros"]) == (100, 0, 0)
        assert error["needed_micros"] > 200
        assert "100 micro-dollars" in error["message"]
        assert not there.asked
        assert len(await rig.events("budget.exceeded")) == 1
        assert (await rig.execution()).over_budget


async def test_tokens_have_a_budget_too(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url, budget=Budget(tokens=130))
        assert (await reached.ask(M, max_tokens=60)).status_code == 200
        error = (await reached.ask(M, max_tokens=200)).json()["error"]
        assert (error["limit_tokens"], error["spent_tokens"]) == (130, 13)
        assert error["needed_tokens"] > 200
        assert len(there.asked) == 1


async def test_a_replay_costs_nothing_even_over_the_budget(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url, budget=Budget(tokens=190))
        assert (await reached.ask(M, key="m1")).status_code == 200
        assert (await reached.ask(M, "more", key="m2", max_tokens=500)).status_code == 402
        assert (await reached.ask(M, key="m1")).headers["x-carrel-replayed"] == "1"


async def test_a_held_call_goes_on_when_the_budget_is_raised(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url, budget=Budget(micros=10, on_exceeded="wait"))
        asking = asyncio.create_task(reached.ask(M))
        await until(lambda: rig.events("budget.exceeded"))
        assert not asking.done()
        reached.gateway.update(await rig.execution())  # the record was read for another reason
        await raised(rig, reached, Budget(micros=20, on_exceeded="wait"))
        assert not asking.done()
        await raised(rig, reached, Budget(micros=1_000_000))
        assert (await asking).status_code == 200
        assert len(there.asked) == 1


async def test_a_held_call_goes_on_when_another_gives_back_what_it_did_not_use(rig: Rig) -> None:
    go = asyncio.Event()

    async def slow(asking: Asking) -> None:
        await go.wait()
        await asking.answer(200, whole(M), "content-type: application/json")

    async with provider(slow) as there:
        reached = await rig.gateway(there.url, budget=Budget(micros=400, on_exceeded="wait"))
        one = asyncio.create_task(reached.ask(M, "one"))
        await until(lambda: there.asked)
        two = asyncio.create_task(reached.ask(M, "two"))
        await until(lambda: rig.events("budget.exceeded"))
        go.set()
        assert [(await one).status_code, (await two).status_code] == [200, 200]


async def test_a_held_call_whose_client_left_is_not_made(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url, budget=Budget(micros=10, on_exceeded="wait"))
        _, writer = await reached.dial()
        writer.write(request_bytes(M, asked(M)))
        await until(lambda: rig.events("budget.exceeded"))
        writer.close()
        await writer.wait_closed()
        await raised(rig, reached, Budget())
        assert (await reached.ask(M, "another")).status_code == 200
        assert len(there.asked) == 1


async def test_a_gateway_that_closes_lets_a_held_call_go_without_a_byte(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url, budget=Budget(micros=10, on_exceeded="wait"))
        asking = asyncio.create_task(reached.raw(request_bytes(M, asked(M))))
        await until(lambda: rig.events("budget.exceeded"))
        await reached.gateway.close(grace_s=30)
        assert await asking == b""  # init's outlet asks the next gateway


async def test_it_is_settled_by_what_the_provider_says_caches_and_all(rig: Rig) -> None:
    said = json.loads(whole(M))
    said["usage"] |= {"cache_read_input_tokens": 1000, "cache_creation_input_tokens": 100}
    body = json.dumps(said).encode()

    async def cached(asking: Asking) -> None:
        await asking.answer(200, body, "content-type: application/json")

    async with provider(cached) as there:
        reached = await rig.gateway(there.url, budget=Budget(micros=1_000_000))
        await reached.ask(M)
        [told] = await rig.events("usage")
        assert told.data["cache_read_tokens"] == 1000
        assert told.data["cache_write_tokens"] == 100
        # 10 * 1 + 3 * 2 + 1000 * 0.1 + 100 * 1.25
        assert (await rig.execution()).spend.micros == 241


async def test_a_cut_stream_counts_for_what_was_seen(rig: Rig) -> None:
    async def cut(asking: Asking) -> None:
        await asking.stream_head()
        for event in events(M, "word " * 300)[:3]:
            await asking.chunk(event)
        asking.cut()

    async with provider(by_turns(cut, refusing(400))) as there:
        reached = await rig.gateway(there.url, budget=Budget(micros=1_000_000))
        await reached.raw(request_bytes(M, asked(M, stream=True)))
        spend = (await rig.execution()).spend
        assert (spend.input_tokens, spend.reserved_micros) == (10, 0)
        assert 300 <= spend.output_tokens <= 600


async def test_spend_is_told_inside(rig: Rig) -> None:
    async with provider(answering(M)) as there:
        reached = await rig.gateway(there.url, budget=Budget(micros=10_000, tokens=5_000))
        await reached.ask(M, key="m1")
        await reached.ask(M, key="m1")
        told = (await reached.client.get("/carrel/v1/spend")).json()
        assert told == {
            "micros": 16,
            "input_tokens": 10,
            "output_tokens": 3,
            "calls": 1,
            "replays": 1,
            "limit_micros": 10_000,
            "limit_tokens": 5_000,
        }


async def test_a_call_without_a_price_counts_tokens_and_no_money(rig: Rig) -> None:
    async with provider(answering(C)) as there:
        reached = await rig.gateway(rig.policy(there.url, prices={}), budget=Budget(micros=1))
        assert (await reached.ask(C)).status_code == 200
        spend = (await rig.execution()).spend
        assert (spend.micros, spend.input_tokens) == (0, 10)


async def test_tokens_counted_ahead_are_free(rig: Rig) -> None:
    async with provider(refusing(200, b'{"input_tokens": 7}')) as there:
        reached = await rig.gateway(there.url, budget=Budget(tokens=1))
        counted = await reached.client.post("/v1/messages/count_tokens", json=asked(M))
        assert counted.json() == {"input_tokens": 7}
        assert (await rig.execution()).spend.calls == 0


PRICE = Price(input=1_000_000, output=2_000_000)


def test_estimates_are_on_the_high_side() -> None:
    body = asked(M, "x" * 3000)
    assert reserve(body, 3100, M, PRICE) == ModelUsage(1034, 100, cost_micros=1234, estimated=True)
    assert reserve(asked(C), 300, C, None).output_tokens == 8192
    assert reserve(asked(C, n=3, max_completion_tokens=10), 300, C, None).output_tokens == 30
    assert reserve(asked(R, max_output_tokens=True), 300, R, None).output_tokens == 8192
    most = reserve(asked(M, max_tokens=100_000), 300, M, PRICE)
    assert if_cut(most, PRICE) == replace(
        most, output_tokens=CUT_OUTPUT_TOKENS, cost_micros=most.input_tokens + 2 * CUT_OUTPUT_TOKENS
    )


def test_a_picture_counts_as_a_picture_and_not_as_text() -> None:
    data = "A" * 1_000_000
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    paper = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": data}}
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    for part, tokens in ((image, IMAGE_TOKENS), (url, IMAGE_TOKENS), (paper, 50_000)):
        body = {"messages": [{"role": "user", "content": [part]}]}
        assert reserve(body, 1_000_300, M, None).input_tokens == pytest.approx(tokens + 100, abs=10)
    words = {"messages": [{"role": "user", "content": [{"type": "text", "text": "word " * 200_000}]}]}
    assert reserve(words, 1_000_300, M, None).input_tokens > 300_000
