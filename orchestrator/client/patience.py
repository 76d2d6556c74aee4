"""How long to keep trying, and how long to wait in between. Time is an argument; knows no clock and no network."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `limit_s` None = for ever. The n-th wait in a row is between half and all of first·2ⁿ, at most `most_s`:
    spread, so that a restarted server is not met by all its clients in one instant."""

    limit_s: float | None = 30.0
    first_s: float = 0.1
    most_s: float = 5.0

    def delay_s(self, tries: int, *, asked_s: float = 0.0) -> float:
        """The wait after `tries` failures in a row (from 1). `asked_s`: what the server asked for (Retry-After),
        believed up to a minute; never less than that."""
        span = min(self.most_s, self.first_s * 2.0 ** min(tries - 1, 20))
        return max(span * (0.5 + random.random() / 2), min(asked_s, 60.0))

    def over(self, since_s: float, now_s: float) -> bool:
        """True when nothing has worked for longer than the limit."""
        return self.limit_s is not None and now_s - since_s > self.limit_s


FOR_EVER = Patience(limit_s=None)
