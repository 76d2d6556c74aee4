"""Dollars and tokens as people type and read them."""

from __future__ import annotations

import pytest

from orchestrator.cli import money
from orchestrator.cli.usage import UsageError
from orchestrator.wire.way_out import SpendAnswer


@pytest.mark.parametrize(
    ("usd", "shown"),
    [(0, "$0"), (1.25, "$1.25"), (0.1, "$0.10"), (0.0031, "$0.0031"), (0.000001, "$0.000001"), (12, "$12.00")],
)
def test_dollars(usd: float, shown: str) -> None:
    assert money.usd(usd) == shown


@pytest.mark.parametrize(("count", "shown"), [(950, "950"), (12_345, "12.3k"), (1_000_000, "1M"), (4_540_000, "4.5M")])
def test_tokens(count: int, shown: str) -> None:
    assert money.tokens(count) == shown


def test_spend() -> None:
    assert money.spent(SpendAnswer()) == ""
    spend = SpendAnswer(usd=0.5, micros=500_000, input_tokens=12_000, output_tokens=345, calls=2)
    assert money.spent(spend) == "$0.50 12.3k tok"


def test_limits() -> None:
    assert money.limit("$2.50", "--budget-usd", float) == 2.5
    assert money.limit("none", "--budget-usd", float) is None
    assert money.limit("1_000", "--budget-tokens", int) == 1000
    with pytest.raises(UsageError, match="for example 200000"):
        money.limit("much", "--budget-tokens", int)
