"""The two skins of a channel: its core over a WebSocket that is opened again when it breaks. Decides nothing else.

async with client.execution("exe_…").channel() as channel:
    await channel.send("go on")
    async for item in channel:      # Batch, Receipt or Refused, until the history is closed
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Self

from websockets import exceptions
from websockets.asyncio import client as asyncio_client
from websockets.sync import client as sync_client

from orchestrator.client import calls
from orchestrator.client.address import Address
from orchestrator.client.answers import problem
from orchestrator.client.channel import ChannelCore, Item
from orchestrator.client.exchange import Response
from orchestrator.client.following import Again
from orchestrator.client.patience import Patience

OPEN_S = 10.0
#: Without a pong for this long the line is dead.
PING_S = 20.0
MAX_FRAME_BYTES = 16 << 20


class _Line:
    """What both skins know: where, with what, and how patient."""

    def __init__(self, address: Address, token: str, core: ChannelCore, patience: Patience) -> None:
        self.address, self.core, self.patience = address, core, patience
        self.tries = 0
        self.since_s = time.monotonic()
        self._headers = {"authorization": f"Bearer {token}"} if token else {}

    @property
    def uri(self) -> str:
        return self.address.websocket + self.core.path()

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "additional_headers": self._headers,
            "max_size": MAX_FRAME_BYTES,
            "open_timeout": OPEN_S,
            "ping_interval": PING_S,
            "ping_timeout": PING_S,
            "compression": None,
            "proxy": None,
        }
        return options

    def opened(self) -> None:
        self.tries, self.since_s = 0, time.monotonic()

    def failed(self, error: Exception) -> float:
        """How long to wait before the next try. Raises what trying again cannot change, or Unavailable."""
        if isinstance(error, exceptions.InvalidStatus):
            response = Response(
                error.response.status_code,
                {name.lower(): value for name, value in error.response.headers.raw_items()},
                bytes(error.response.body or b""),
            )
            if response.status not in calls.UNAVAILABLE:
                raise problem(response) from None
        if isinstance(error, exceptions.ConnectionClosed) and error.rcvd and error.rcvd.code == 1008:
            raise problem(Response(403, {}, error.rcvd.reason.encode())) from None
        self.tries += 1
        delay_s = self.patience.delay_s(self.tries)
        if self.patience.over(self.since_s, time.monotonic() + delay_s):
            raise calls.no_answer(str(error), self.address.url) from None
        return delay_s


_BROKEN = (OSError, EOFError, TimeoutError, exceptions.WebSocketException, Again)


class AsyncChannel:
    """Events out, messages in. Iterate to receive; `send` may be called at any time, before or between."""

    def __init__(
        self,
        address: Address,
        token: str,
        core: ChannelCore,
        patience: Patience,
        on_retry: Callable[[str, float], None] | None,
    ) -> None:
        self._line = _Line(address, token, core, patience)
        self._core = core
        self._on_retry = on_retry
        self._left = False
        self._socket: asyncio_client.ClientConnection | None = None

    def _over(self) -> bool:
        return self._left or self._core.closed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Leave. What was sent and has no receipt may or may not arrive."""
        self._left = True
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def send(self, content: str | bytes, *, id: str = "", mode: str = "steer") -> str:
        """Its id. Its receipt comes while iterating; sent again on every new connection until then."""
        return await self._send(self._core.message(content, id=id, mode=mode))

    async def interrupt(self, *, id: str = "") -> str:
        """Its id."""
        return await self._send(self._core.interrupt(id=id))

    async def cancel(self, *, grace_s: float | None = None, id: str = "") -> str:
        """Its id."""
        return await self._send(self._core.cancel(grace_s=grace_s, id=id))

    async def _send(self, frame: tuple[str, str]) -> str:
        if self._socket is not None:
            with contextlib.suppress(*_BROKEN):  # the receiving side notices, and sends it again
                await self._socket.send(frame[1])
        return frame[0]

    async def __aiter__(self) -> AsyncIterator[Item]:
        while not self._over():
            try:
                async with await self._open() as socket:
                    self._socket = socket
                    for frame in self._core.resend():
                        await socket.send(frame)
                    async for received in socket:
                        self._line.opened()
                        for item in self._core.receive(received):
                            yield item
                        if self._over():
                            return
                raise EOFError("the connection ended")
            except _BROKEN as error:
                self._socket = None
                if self._over():
                    return
                delay_s = self._line.failed(error)
                if self._on_retry:
                    self._on_retry(str(error), delay_s)
                await asyncio.sleep(delay_s)

    async def _open(self) -> asyncio_client.ClientConnection:
        path = self._line.address.socket
        if path is None:
            return await asyncio_client.connect(self._line.uri, **self._line.options)
        return await asyncio_client.unix_connect(path, self._line.uri, **self._line.options)


class Channel:
    """The blocking twin of AsyncChannel. `send` may be called from any thread."""

    def __init__(
        self,
        address: Address,
        token: str,
        core: ChannelCore,
        patience: Patience,
        on_retry: Callable[[str, float], None] | None,
    ) -> None:
        self._line = _Line(address, token, core, patience)
        self._core = core
        self._on_retry = on_retry
        self._lock = threading.Lock()  # a message is either in `resend` or sent on the open socket
        self._left = False
        self._socket: sync_client.ClientConnection | None = None

    def _over(self) -> bool:
        return self._left or self._core.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """See AsyncChannel.aclose."""
        self._left = True
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.close()

    def send(self, content: str | bytes, *, id: str = "", mode: str = "steer") -> str:
        """See AsyncChannel.send."""
        with self._lock:
            return self._send(self._core.message(content, id=id, mode=mode))

    def interrupt(self, *, id: str = "") -> str:
        """See AsyncChannel.interrupt."""
        with self._lock:
            return self._send(self._core.interrupt(id=id))

    def cancel(self, *, grace_s: float | None = None, id: str = "") -> str:
        """See AsyncChannel.cancel."""
        with self._lock:
            return self._send(self._core.cancel(grace_s=grace_s, id=id))

    def _send(self, frame: tuple[str, str]) -> str:
        if self._socket is not None:
            with contextlib.suppress(*_BROKEN):
                self._socket.send(frame[1])
        return frame[0]

    def __iter__(self) -> Iterator[Item]:
        while not self._over():
            try:
                with self._open() as socket:
                    with self._lock:
                        for frame in self._core.resend():
                            socket.send(frame)
                        self._socket = socket
                    for received in socket:
                        self._line.opened()
                        with self._lock:
                            items = self._core.receive(received)
                        yield from items
                        if self._over():
                            return
                raise EOFError("the connection ended")
            except _BROKEN as error:
                self._socket = None
                if self._over():
                    return
                delay_s = self._line.failed(error)
                if self._on_retry:
                    self._on_retry(str(error), delay_s)
                time.sleep(delay_s)

    def _open(self) -> sync_client.ClientConnection:
        path = self._line.address.socket
        socket: sync_client.ClientConnection
        if path is None:
            socket = sync_client.connect(self._line.uri, **self._line.options)
        else:
            socket = sync_client.unix_connect(path, self._line.uri, **self._line.options)
        return socket
