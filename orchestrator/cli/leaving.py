"""Ctrl-C ends a verb, for certain. Knows no verb; one that takes SIGINT for something else sets its own handler.

Python raises KeyboardInterrupt wherever the main thread happens to be. In a finalizer or a callback of the garbage
collector it is printed and dropped, and a verb that follows for ever then follows for ever (seen: `logs -f`, once in
some thousand). So the first Ctrl-C also sets an alarm: who has not left by then is ended.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LEAVE_LIMIT_S = 2.0


@contextmanager
def by_ctrl_c(code: int) -> Iterator[None]:
    """Within it a SIGINT raises KeyboardInterrupt and, where that is lost, ends the process with `code`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        os._exit(code)

    def interrupted(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGALRM, leave)
        signal.setitimer(signal.ITIMER_REAL, LEAVE_LIMIT_S)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupted)
    alarm = signal.getsignal(signal.SIGALRM)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if signal.getsignal(signal.SIGALRM) is leave:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
