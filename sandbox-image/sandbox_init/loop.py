"""The loop of PID 1: which descriptor is ready, which timer is due. One thread, nothing blocks.

Knows nothing of processes, frames or connections. Handlers must try their read or write and take EAGAIN for an answer:
a descriptor's number may have been given to another between the kernel's report and the call.
"""

from __future__ import annotations

import errno
from select import EPOLLIN, EPOLLOUT, epoll
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = EPOLLIN
WRITE = EPOLLOUT


class Timer:
    """Something to be done once at `at` (monotonic seconds) unless cancelled."""

    __slots__ = ("at", "callback")

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Loop:
    """Level-triggered epoll with a handful of timers (a scan of the list is cheaper than a heap at this size)."""

    def __init__(self) -> None:
        self._epoll = epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._after_batch: list[Callable[[], None]] = []

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler(events)` while `fd` is ready for any of `events` (READ, WRITE, or both). 0 watches nothing but
        is reported errors and hang-ups by the kernel all the same; use `forget` for silence. May be called again."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop watching. Call before closing `fd`. Idempotent."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(monotonic() + delay_s, callback)
        self._timers.append(timer)
        return timer

    def after_every_batch(self, callback: Callable[[], None]) -> None:
        """Call it whenever a round of handlers and timers is done: what many handlers caused is then done once."""
        self._after_batch.append(callback)

    def run(self) -> None:
        """For ever. Only an exception of a handler ends it."""
        while True:
            self.turn()

    def turn(self) -> None:
        timeout_s = -1.0
        if self._timers:
            self._timers = [timer for timer in self._timers if timer.callback]
            if self._timers:
                timeout_s = max(0.0, min(timer.at for timer in self._timers) - monotonic())
        for fd, events in self._epoll.poll(timeout_s):
            handler = self._handlers.get(fd)
            if handler:
                handler(events)
        if self._timers:
            now = monotonic()
            for timer in [timer for timer in self._timers if timer.at <= now]:
                callback, timer.callback = timer.callback, None
                if callback:
                    callback()
        for callback in self._after_batch:
            callback()


def would_block(error: OSError) -> bool:
    """Nothing to read, or no room to write, now. Not an error."""
    return error.errno in (errno.EAGAIN, errno.EINTR)
