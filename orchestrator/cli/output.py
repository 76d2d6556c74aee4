"""Bytes onto our own stdout and stderr: each stream on its own. Knows no server, and not what the bytes are.

Written by a thread of its own, so that a reader that stalls (`| less`) does not keep Ctrl-C from being seen; straight
to the descriptors, so that nothing of ours is buffered between two of its lines.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading

DESCRIPTORS = {"stdout": 1, "stderr": 2}


def write_all(descriptor: int, data: bytes) -> None:
    """Raises BrokenPipeError when nobody reads any more."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Writer:
    """Writes in order, from a thread. `write` returns when the bytes are out: whoever produces them is held back."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[int, bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="output", daemon=True).start()

    async def write(self, descriptor: int, data: bytes) -> None:
        """Raises BrokenPipeError."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._work.put((descriptor, data, done))
        await done

    def _run(self) -> None:
        while True:
            descriptor, data, done = self._work.get()
            error: OSError | None = None
            try:
                write_all(descriptor, data)
            except OSError as failed:
                error = failed
            try:
                self._loop.call_soon_threadsafe(_settle, done, error)
            except RuntimeError:
                return  # the loop has ended: whoever waited has left


def _settle(done: asyncio.Future[None], error: OSError | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
