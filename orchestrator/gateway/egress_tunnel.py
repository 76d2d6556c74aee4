"""Bytes both ways between a program inside and a server, after CONNECT. Knows no policy and no HTTP.

Where the client speaks TLS, the server it names there (SNI) must be the host of the CONNECT: else the allowlist would
say one name and the server behind the address serve another. A hello that names nobody, or hides a second one
(encrypted client hello), cannot be held against the list: closed. The bytes of a tunnel that is not TLS are not looked
into; on port 443 there is none.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from typing import Final, TypeVar

from orchestrator.gateway.egress_flow import CHUNK_BYTES, Cut, Flow
from orchestrator.gateway.egress_policy import Refused, shown
from orchestrator.gateway.egress_tls import (
    SERVER_HELLO_BYTES,
    Hello,
    More,
    NotHello,
    asks_again,
    begins_as_tls,
    client_hello,
    skippable,
)

TLS_PORT: Final = 443
_Read = TypeVar("_Read", Hello, int)


class Tunnel:
    """Between `client` (in the sandbox) and `server`; `first`: what the client sent already."""

    def __init__(
        self,
        client: tuple[StreamReader, StreamWriter],
        server: tuple[StreamReader, StreamWriter],
        flow: Flow,
        first: bytes,
    ) -> None:
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._flow = flow
        self._first = first
        self._answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Returns when both have said all they will. Raises Refused (TLS names another server), Cut, OSError."""
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._outward())
                both.create_task(self._inward())
        except BaseExceptionGroup as broken:
            raise _first_of(broken) from None

    async def _outward(self) -> None:
        first = self._first or await self._from_client.read(CHUNK_BYTES)
        if first and (self._flow.port == TLS_PORT or begins_as_tls(first)):
            first = await self._checked(first)
        while first:
            await self._send(first)
            first = await self._from_client.read(CHUNK_BYTES)
        _end(self._to_server)
        self._flow.half_closed()

    async def _inward(self) -> None:
        head = b""
        while data := await self._from_server.read(CHUNK_BYTES):
            if not self._answer.done():
                head += data[: SERVER_HELLO_BYTES - len(head)]
                again = asks_again(head)
                if not isinstance(again, More):
                    self._answer.set_result(again)
            self._flow.received(len(data))
            self._to_client.write(data)
            await self._to_client.drain()
        if not self._answer.done():
            self._answer.set_result(False)
        _end(self._to_client)
        self._flow.half_closed()

    async def _send(self, data: bytes) -> None:
        self._flow.sent(len(data))
        self._to_server.write(data)
        await self._to_server.drain()

    async def _checked(self, first: bytes) -> bytes:
        """Passes on the handshake up to where names can change no more; what came behind it."""
        flight = bytearray(first)
        await self._hello(flight)
        # Held until the server has answered: a client that does not wait could send a second hello unseen.
        if await self._answer:
            while (size := await self._whole(skippable, flight)) > 0:
                await self._send(bytes(flight[:size]))
                del flight[:size]
            await self._hello(flight)
        return bytes(flight) or await self._from_client.read(CHUNK_BYTES)

    async def _hello(self, flight: bytearray) -> None:
        hello = await self._whole(client_hello, flight)
        if objection := _objection(hello, self._flow.host):
            raise self._refused(objection)
        await self._send(bytes(flight[: hello.end]))
        del flight[: hello.end]

    async def _whole(self, read: Callable[[bytes], _Read | More], flight: bytearray) -> _Read:
        """What `read` makes of the flight once enough of it is there. Raises Refused; Cut where the client left."""
        while True:
            try:
                found = read(bytes(flight))
            except NotHello as wrong:
                raise self._refused(f"what its client sends is not TLS that can be checked: {wrong}") from None
            if not isinstance(found, More):
                return found
            while len(flight) < found.need:
                data = await self._from_client.read(CHUNK_BYTES)
                if not data:
                    raise Cut("the client left within its handshake")
                flight += data

    def _refused(self, why: str) -> Refused:
        return Refused(self._flow.host, self._flow.port, why)


def _end(writer: StreamWriter) -> None:
    """Half-close. Some loops object where the other side has gone already: it is then read as the end it is."""
    if not writer.is_closing():
        writer.write_eof()


def _objection(hello: Hello, host: str) -> str:
    if not hello.name:
        return "its TLS client names no server (no SNI)"
    if hello.name != host:
        return f"its TLS client asks for another server: {shown(hello.name)}"
    if hello.hides:
        return "its TLS client hides a server name (encrypted client hello): turn that off in the client"
    return ""


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one that counts: a refusal before what it broke."""
    flat = list(_flatten(group))
    return next((each for each in flat if isinstance(each, Refused)), flat[0])


def _flatten(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for each in group.exceptions:
        found += _flatten(each) if isinstance(each, BaseExceptionGroup) else [each]
    return found
