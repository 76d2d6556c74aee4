"""SIGINT and SIGTERM: an interrupt, and the end. Knows nothing of what they stop.

Between any two lines is where a journal is broken, so a signal is only remembered; it is raised at once inside
`stoppable()`, which is put around waiting: for the model's bytes, a command, a message.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """Somebody sent a signal."""


class Interrupted(Stopped):
    """SIGINT: stop what you are doing, the conversation goes on."""


class Cancelled(Stopped):
    """SIGTERM: come to an end."""


class Signals:
    """One, for the main thread."""

    def __init__(self) -> None:
        self.interrupted = False
        self.cancelled = False
        self._open = False

    def install(self) -> None:
        """From now on; SIGHUP is as SIGTERM."""
        signal.signal(signal.SIGINT, self._came)
        signal.signal(signal.SIGTERM, self._came)
        signal.signal(signal.SIGHUP, self._came)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.interrupted = True
        else:
            self.cancelled = True
        if self._open:
            self._open = False  # one is enough: a second must not be raised while the first is handled
            raise Cancelled if self.cancelled else Interrupted

    def cancel(self) -> None:
        """As SIGTERM, from any thread."""
        os.kill(os.getpid(), signal.SIGTERM)

    def check(self) -> None:
        """Raise what came while nobody could be stopped."""
        if self.cancelled:
            raise Cancelled
        if self.interrupted:
            raise Interrupted

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Raises Interrupted or Cancelled, anywhere inside: only what may break off is done there."""
        self._open = True
        try:
            self.check()
            yield
        finally:
            self._open = False
