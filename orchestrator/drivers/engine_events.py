"""The engine's stream of events, as ids of sandboxes something happened to. Hints: whoever hears one observes.

A thread of its own reads the blocking stream; what the listener has not taken yet is kept as a set, so a flood of
events about few sandboxes costs no memory. Knows nothing of what an event means.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
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
        opened: asyncio.Future[_Stream] = loop.create_future()
        reader = threading.Thread(target=self._read, args=(loop, opened), name="engine-events", daemon=True)
        reader.start()
        try:
            stream = await opened
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

    def _read(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[Any]) -> None:
        def say(call: Callable[..., None], *args: Any) -> None:
            try:
                loop.call_soon_threadsafe(call, *args)
            except RuntimeError:  # the loop has closed: nobody listens
                return

        def answer(result: _Stream | EngineUnavailable) -> None:
            if opened.done():  # given up while we connected
                if isinstance(result, _Stream):
                    result.close()
            elif isinstance(result, _Stream):
                opened.set_result(result)
            else:
                opened.set_exception(result)

        try:
            stream = _Stream(self._connect(), self._filters)
        except EngineUnavailable as error:
            say(answer, error)
            return
        say(answer, stream)
        try:
            for event in stream.events():
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


class _Stream:
    """One `GET /events`. Not the SDK's own: that one waits for ever for the first byte of an engine that hangs."""

    def __init__(self, client: docker.APIClient, filters: dict[str, str]) -> None:
        self._client = client
        self._socket: socket.socket | None = None
        with contextlib.ExitStack() as undo, sorted_errors():
            undo.callback(client.close)
            self._response = client.get(
                f"{client.base_url}/v{client.api_version}/events",
                params={"filters": json.dumps({name: [value] for name, value in filters.items()})},
                stream=True,
                timeout=client.timeout,
            )
            undo.callback(self._response.close)
            self._response.raise_for_status()
            connection = getattr(self._response.raw, "connection", None)
            self._socket = getattr(connection, "sock", None)
            if self._socket is not None:
                self._socket.settimeout(None)  # it answers; from now on silence means that nothing happens
            undo.pop_all()

    def events(self) -> Iterator[dict[str, Any]]:
        """Blocking. Ends when closed, or when the engine ends it; raises EngineUnavailable."""
        with sorted_errors():
            for line in self._response.iter_lines():
                if line:
                    yield json.loads(line)

    def close(self) -> None:
        """From any thread: wakes the reader."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._response.close()
        self._client.close()
