"""The platform's journal of intents, as the loop needs it: for each call the run that began it. Without a gateway (the
harness run bare) everything may be done, and nobody else remembers it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from agent_harness.intents import Begun, Intent, IntentError, Journal
from agent_harness.signals import Signals


class Ledger:
    """Blocking; a gateway that is away is asked again for minutes. Raises IntentError, GatewayAway."""

    def __init__(self, environ: Mapping[str, str], signals: Signals) -> None:
        """Raises ValueError: CARREL_GATEWAY is no address."""
        self._environ = environ
        self._signals = signals
        self._journal = self._of("")

    @property
    def there(self) -> bool:
        """False: the harness runs bare."""
        return self._journal is not None

    def begin(self, key: str, run: str, tool: str, effect: str, summary: str, digest: str) -> Begun:
        """Before it is done."""
        journal = self._of(run)
        if journal is None:
            return Begun(True, Intent(key, "open"))
        return journal.begin(key, kind=tool, effect=effect, summary=summary, digest=digest)

    def finish(self, key: str, run: str, *, ok: bool, result: str) -> None:
        """After it. What the platform knows better (another run has it, a person settled it) stands."""
        journal = self._of(run)
        if journal is None:
            return
        try:
            journal.finish(key, ok=ok, result=result)
        except IntentError as problem:
            if problem.code in ("unavailable", "gave_up"):
                raise

    def get(self, key: str) -> Intent | None:
        """As it is now; None: it is not there."""
        if self._journal is None:
            return None
        try:
            return self._journal.get(key)
        except IntentError as problem:
            if problem.code in ("unavailable", "gave_up"):
                raise
            return None

    def _of(self, run: str) -> Journal | None:
        return Journal.from_environment(
            self._environ, run=run, gave_up=lambda: self._signals.cancelled or self._signals.interrupted
        )


def new_run() -> str:
    """A word for one doing of one call."""
    return os.urandom(8).hex()


def digest_of_call(tool: str, arguments: Mapping[str, Any]) -> str:
    """So that a key cannot come to mean another call."""
    told = json.dumps([tool, {name: value for name, value in arguments.items() if name != "effect"}], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
