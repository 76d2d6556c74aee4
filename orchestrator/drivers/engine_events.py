"""The engine's stream of events, as ids of sandboxes something happened to. Hints: whoever hears one observes.

A thread of its own reads the blocking stream; what the listener has not taken yet is kept as a set, so a flood of
events about few sandboxes costs no memory. Knows nothing of what an event means.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import docker

from orchestrator.drivers.docker_options import LABEL_INSTALLATION, LABEL_SANDBOX
from orchestrator.drivers.engine_calls import sorted_errors
from orchestrator.errors import EngineUnavailable

log = logging.getLogger(__name__)


class EngineEvents:
    """One listener. Ends when the engine goes away or the iteration is given up."""

    def __init__(self, connect: Callable[[], docker.APIClient], installation: str) -> None:
        self._connect = connect
        self._filters = {"type": "container", "label": f"{LABEL_INSTALLATION}={installation}"}
        self._fresh: dict[str, None] = {}  # in order of arrival
        self._ended = False
        self._bell = asyncio.Event()

    async def ids(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[tuple[docker.APIClient, Any]] = loop.create_future()
        reader = threading.Thread(target=self._read, args=(loop, opened), name="engine-events", daemon=True)
        reader.start()
        try:
            client, stream = await opened
        except EngineUnavailable:
            return
        try:
            while True:
                while self._fresh:
                    sandbox_id = next(iter(self._fresh))
                    del self._fresh[sandbox_id]
                    yield sandbox_id
                if self._ended:
                    return
                self._bell.clear()
                await self._bell.wait()
        finally:
            stream.close()
            client.close()

    def _read(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[Any]) -> None:
        def say(call: Callable[..., None], *args: Any) -> None:
            try:
                loop.call_soon_threadsafe(call, *args)
            except RuntimeError:  # the loop has closed: nobody listens
                return

        def answer(result: Any, error: EngineUnavailable | None) -> None:
            if opened.done():  # given up while we connected
                if error is None:
                    result[1].close()
                    result[0].close()
            elif error is not None:
                opened.set_exception(error)
            else:
                opened.set_result(result)

        try:
            client = self._connect()
            with sorted_errors():
                stream = client.events(filters=self._filters, decode=True)
        except EngineUnavailable as error:
            say(answer, None, error)
            return
        say(answer, (client, stream), None)
        try:
            with sorted_errors():
                for event in stream:
                    sandbox_id = event.get("Actor", {}).get("Attributes", {}).get(LABEL_SANDBOX)
                    if sandbox_id:
                        say(self._heard, sandbox_id)
        except EngineUnavailable as error:
            log.info("the engine's events ended: %s", error)
        finally:
            say(self._end)

    def _heard(self, sandbox_id: str) -> None:
        self._fresh[sandbox_id] = None
        self._bell.set()

    def _end(self) -> None:
        self._ended = True
        self._bell.set()
