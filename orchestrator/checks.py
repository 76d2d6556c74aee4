"""One thing looked at on a host, and what was found. Knows nothing of what is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """`ok`; `warn`: it works, less well than it could; `missing`: it will not work."""

    OK = "ok"
    WARN = "warn"
    MISSING = "missing"


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was seen, and what to do where that is not enough."""

    name: str
    verdict: Verdict
    seen: str
    remedy: str = ""
