"""When a provider is asked again, and after how long. Pure.

Asked again where nothing of an answer was passed on: no connection, too many requests, a failure of its own. A provider
that says when to come is taken at its word; where that is later than we may wait, its answer goes to the client, who
may know better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import Final

from orchestrator.models import ModelPolicy

#: 529: Anthropic's "overloaded".
AGAIN: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
_FIRST_S: Final = 0.5
_MOST_S: Final = 8.0
#: A quota that is used up stays so, though it is told as "too many requests".
_FOR_GOOD: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


@dataclass(frozen=True, slots=True)
class Patience:
    """What is left of it: tries and the seconds that waiting may take in all."""

    retries: int
    wait_s: float
    tried: int = 0

    @classmethod
    def of(cls, policy: ModelPolicy) -> Patience:
        return cls(policy.retries, policy.retry_s)

    def pause_s(self, chance: Random, asked_s: float | None) -> float | None:
        """How long to wait before the next try; None: there is none. `asked_s`: the provider's own wish."""
        if self.tried >= self.retries:
            return None
        backoff_s = min(_MOST_S, _FIRST_S * 2**self.tried) * chance.uniform(0.5, 1.0)
        pause_s = backoff_s if asked_s is None else asked_s * chance.uniform(1.0, 1.1)
        return pause_s if pause_s <= self.wait_s else None

    def after(self, pause_s: float) -> Patience:
        return Patience(self.retries, self.wait_s - pause_s, self.tried + 1)


def may_be_asked_again(status: int, headers: Mapping[str, str], body: bytes) -> bool:
    """`headers`: lower case."""
    match headers.get("x-should-retry"):
        case "true":
            return True
        case "false":
            return False
    return status in AGAIN and not (status == 429 and _code(body) in _FOR_GOOD)


def asked_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Retry-After in its three spellings, as seconds from now; None: not said, or nonsense."""
    try:
        if value := headers.get("retry-after-ms"):
            return max(0.0, float(value) / 1000)
        if value := headers.get("retry-after"):
            if value.strip().replace(".", "", 1).isdigit():
                return float(value)
            return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        pass
    return None


def _code(body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        return str(error.get("code") or error.get("type"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
