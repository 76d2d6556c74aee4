"""What a server of scripts has been asked and has delivered: for tests that say "each exactly once". Knows no format.

A completion is `begun` when its request is understood, `whole` when all but its last bytes are written (so whoever has
it finds it counted), `cut` when the script broke it off, `abandoned` when the client went before the end, `refused`
when a status came instead.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

KEPT_REQUESTS: Final = 2_000
KEPT_BYTES: Final = 64 << 20
ENDINGS: Final = ("whole", "cut", "abandoned", "refused")


@dataclass
class Tally:
    """Of one request by its digest."""

    script: str
    turn: int | None
    begun: int = 0
    whole: int = 0
    cut: int = 0
    abandoned: int = 0
    refused: int = 0


@dataclass
class Counts:
    """Thread-safe. `input_tokens` and `output_tokens` are of completions delivered whole or broken off, as billed."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _by_digest: dict[str, Tally] = field(default_factory=dict)
    _faults: dict[str, int] = field(default_factory=dict)
    _requests: deque[tuple[int, int, dict[str, Any]]] = field(default_factory=deque)
    _kept_bytes: int = 0
    _number: int = 0
    _open: int = 0
    _input_tokens: int = 0
    _output_tokens: int = 0
    _unread: int = 0  # requests that no script was asked for: bad, without the key

    def begin(self, digest: str, script: str, turn: int | None) -> None:
        with self._lock:
            self._by_digest.setdefault(digest, Tally(script, turn)).begun += 1
            self._open += 1

    def end(self, digest: str, ending: str, *, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """`ending`: one of ENDINGS."""
        with self._lock:
            tally = self._by_digest.get(digest)
            if tally is not None:  # else there was a reset in between
                setattr(tally, ending, getattr(tally, ending) + 1)
                self._open -= 1
                self._input_tokens += input_tokens
                self._output_tokens += output_tokens

    def turned_away(self) -> None:
        with self._lock:
            self._unread += 1

    def fault_is_due(self, digest: str, times: int) -> bool:
        """True the first `times` times."""
        with self._lock:
            had = self._faults.get(digest, 0)
            self._faults[digest] = had + 1
            return had < times

    def keep(self, size_bytes: int, request: Mapping[str, Any]) -> None:
        with self._lock:
            self._number += 1
            self._requests.append((self._number, size_bytes, dict(request)))
            self._kept_bytes += size_bytes
            while len(self._requests) > KEPT_REQUESTS or self._kept_bytes > KEPT_BYTES:
                self._kept_bytes -= self._requests.popleft()[1]

    def requests(self, after: int = 0) -> list[dict[str, Any]]:
        """The last ones, each with its `number` from 1; bounded, so the oldest go."""
        with self._lock:
            return [{"number": number, **request} for number, _, request in self._requests if number > after]

    def stats(self) -> dict[str, Any]:
        with self._lock:
            tallies = [asdict(tally) for tally in self._by_digest.values()]
            return {
                **{name: sum(tally[name] for tally in tallies) for name in ("begun", *ENDINGS)},
                "open": self._open,
                "unread": self._unread,
                "input_tokens": self._input_tokens,
                "output_tokens": self._output_tokens,
                "by_digest": dict(zip(self._by_digest, tallies, strict=True)),
            }

    def reset(self) -> None:
        with self._lock:
            self._by_digest.clear()
            self._faults.clear()
            self._requests.clear()
            self._kept_bytes = self._number = self._open = self._unread = 0
            self._input_tokens = self._output_tokens = 0
