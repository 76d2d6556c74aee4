"""Dollars and tokens as people type and read them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from orchestrator.cli.usage import UsageError

if TYPE_CHECKING:
    from orchestrator.client.nouns import Record, SpendAnswer

N = TypeVar("N", int, float)

NO_LIMIT = "none"


def limit(text: str, option: str, kind: type[N]) -> N | None:
    """A number, or `none`."""
    if text.strip().lower() == NO_LIMIT:
        return None
    try:
        return kind(text.strip().lstrip("$").replace("_", ""))
    except ValueError:
        what = "a whole number of tokens" if kind is int else "dollars"
        example = "200000" if kind is int else "2.50"
        raise UsageError(f"{option} {text!r} is not {what}; for example {example}, or {NO_LIMIT}") from None


def usd(amount: float) -> str:
    """`$1.25`, `$0.0031`, `$0`: cents, or as many digits as a small sum needs."""
    if amount == 0:
        return "$0"
    if amount >= 0.1:
        return f"${amount:.2f}"
    return f"${amount:.6f}".rstrip("0")


def tokens(count: int) -> str:
    """`950`, `12.3k`, `4.5M`."""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + unit
    return str(count)


def spent(spend: SpendAnswer) -> str:
    """`$0.0031 12.3k tok`; "" where there was none."""
    total = spend.input_tokens + spend.output_tokens
    if not (total or spend.micros or spend.calls or spend.replays):
        return ""
    return f"{usd(spend.usd)} {tokens(total)} tok"


def budget(record: Record) -> str:
    """One line: what may be spent, what happens beyond, what was spent."""
    now = record.budget
    limits = [usd(now.usd)] if now.usd is not None else []
    if now.tokens is not None:
        limits.append(f"{tokens(now.tokens)} tok")
    shown = f"budget {' and '.join(limits)}, then {now.on_budget}" if limits else "no budget"
    return f"{shown} · spent {spent(record.spend) or 'nothing'}"
