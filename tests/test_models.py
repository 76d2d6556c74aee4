"""Prices, and which provider, how: what the operator settled, as arithmetic."""

from __future__ import annotations

import pytest

from orchestrator.calls import ModelUsage
from orchestrator.errors import BadInput, Forbidden
from orchestrator.models import ModelApi, ModelPolicy, Price, Provider

CLAUDE = Provider("a", "https://a.example", (ModelApi.MESSAGES,), models=("claude-*",))
GPT = Provider("o", "https://o.example", (ModelApi.RESPONSES, ModelApi.CHAT), models=("gpt-*", "o?-*"))


@pytest.mark.parametrize(
    ("usage", "micros"),
    [
        (ModelUsage(), 0),
        (ModelUsage(input_tokens=1), 3),
        (ModelUsage(cache_read_tokens=1), 1),  # 0.3, rounded up
        (ModelUsage(input_tokens=1_000_000, output_tokens=1_000_000), 18_000_000),
        (ModelUsage(cache_read_tokens=10, cache_write_tokens=4), 18),
    ],
)
def test_what_a_call_costs(usage: ModelUsage, micros: int) -> None:
    assert Price(3_000_000, 15_000_000, cache_read=300_000, cache_write=3_750_000).of(usage) == micros


def test_a_long_input_costs_the_long_price_all_of_it() -> None:
    price = Price(1_000_000, 2_000_000, long=Price(10_000_000, 20_000_000), long_above_tokens=100)
    assert price.of(ModelUsage(input_tokens=100, output_tokens=1)) == 102
    assert price.of(ModelUsage(input_tokens=61, cache_write_tokens=40, output_tokens=1)) == 630


def test_prices_go_by_the_first_pattern() -> None:
    policy = ModelPolicy(prices={"gpt-x-mini": Price(1, 1), "gpt-x*": Price(2, 2)})
    assert policy.price("gpt-x-mini") == Price(1, 1)
    assert policy.price("gpt-x-2026") == Price(2, 2)
    assert policy.price("other") is None


@pytest.mark.parametrize(
    ("default", "model", "api"),
    [
        (None, "claude-1", ModelApi.MESSAGES),
        (None, "gpt-1", ModelApi.RESPONSES),
        (ModelApi.CHAT, "gpt-1", ModelApi.CHAT),
        (ModelApi.CHAT, "claude-1", ModelApi.MESSAGES),
        (None, "unknown", ModelApi.MESSAGES),
        (ModelApi.CHAT, "unknown", ModelApi.CHAT),
    ],
)
def test_how_to_speak_to_a_model(default: ModelApi | None, model: str, api: ModelApi) -> None:
    assert ModelPolicy(providers=(CLAUDE, GPT), default_api=default).api_of(model) == api


def test_a_request_goes_to_the_first_provider_that_speaks_so_and_serves_the_model() -> None:
    policy = ModelPolicy(providers=(CLAUDE, GPT), allowed={"small": ("gpt-*-mini",)})
    assert policy.provider("any", ModelApi.CHAT, "o3-mini") is GPT
    assert policy.provider("small", ModelApi.CHAT, "gpt-5-mini") is GPT
    with pytest.raises(BadInput) as unserved:
        policy.provider("any", ModelApi.CHAT, "claude-1")
    assert "o: gpt-*, o?-*" in str(unserved.value.data)
    with pytest.raises(Forbidden) as forbidden:
        policy.provider("small", ModelApi.CHAT, "gpt-5")
    assert "gpt-*-mini" in str(forbidden.value.data)
