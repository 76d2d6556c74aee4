"""One plain HTTP exchange with an origin server, passed on as it streams. Knows no policy and no address.

Head and framing are made anew by h11 on either side: what is ambiguous in the one does not reach the other. Hop-by-hop
fields (RFC 9110, 7.6.1) stay here, each side is told `Connection: close`. An answer that breaks off is never ended
cleanly: the client sees the break too.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterable
from typing import Final

import h11

from orchestrator.gateway.egress_answer import Answer
from orchestrator.gateway.egress_dial import Unreachable
from orchestrator.gateway.egress_flow import CHUNK_BYTES, Flow
from orchestrator.gateway.egress_policy import Refused
from orchestrator.gateway.egress_port import Head

HEAD_BYTES: Final = 64 * 1024
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110, 9.2.1
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"  # is no part of the answer yet
_HOP_BY_HOP: Final = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class Exchange:
    """One request, whose Host was checked, to `server`; what it says to `answer`."""

    def __init__(
        self, head: Head, path: str, server: tuple[StreamReader, StreamWriter], answer: Answer, flow: Flow
    ) -> None:
        self._head = head
        self._path = path
        self._from_server, self._to_server = server
        self._to_client = answer
        self._flow = flow
        self._upstream = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._downstream = _answering(head)

    async def run(self, body: AsyncIterator[bytes]) -> None:
        """Returns when the answer is over. Raises Refused (the request cannot be passed on), Unreachable (no answer,
        or one that broke off), Cut, OSError (the client has gone)."""
        try:
            request = self._upstream.send(self._request())
        except h11.LocalProtocolError as wrong:
            raise self._bad(str(wrong)) from None
        await self._commit()
        await self._send(request)
        uploading = asyncio.create_task(self._upload(body))
        answering = asyncio.create_task(self._answer())
        try:
            await asyncio.wait({uploading, answering}, return_when=asyncio.FIRST_COMPLETED)
            if uploading.done():
                uploading.result()
            await answering
        finally:
            for task in (uploading, answering):
                task.cancel()
            await asyncio.gather(uploading, answering, return_exceptions=True)

    async def _commit(self) -> None:
        """Before the server hears of it: a byte for the client, if this must not be done twice. Without one, and with
        this worker killed, init's outlet would say it all again to the next worker (orchestrator.gateways). HTTP/1.0
        knows no interim answers: there it may."""
        if self._head.method not in _SAFE and self._head.version == "1.1":
            self._to_client.client.write(_CONTINUE)
            await self._to_client.client.drain()
        elif self._head.header("expect").lower() == "100-continue":
            self._to_client.client.write(_CONTINUE)

    def _request(self) -> h11.Request:
        headers = list(_end_to_end(self._head.headers))
        names = [name for name, _ in self._head.headers]
        coded = [value.lower() for name, value in self._head.headers if name == "transfer-encoding"]
        if coded and (coded != ["chunked"] or "content-length" in names):
            raise self._bad("its body is framed in more than one way")
        framing = [("transfer-encoding", "chunked")] if coded else []
        kept = [(name, value) for name, value in headers if name not in ("host", "expect")]
        host = self._flow.host if self._flow.port == 80 else f"{self._flow.host}:{self._flow.port}"
        try:
            return h11.Request(
                method=self._head.method,
                target=self._path,
                headers=_bytes([("host", host), *kept, *framing, ("connection", "close")]),
            )
        except UnicodeEncodeError:
            raise self._bad("a header that is not Latin-1") from None

    async def _upload(self, body: AsyncIterator[bytes]) -> None:
        try:
            async for chunk in body:
                if not await self._sent(h11.Data(chunk)):
                    return
            await self._sent(h11.EndOfMessage())
        except (ValueError, h11.LocalProtocolError) as wrong:
            raise self._bad(f"its body breaks off: {wrong}") from None

    async def _sent(self, event: h11.Data | h11.EndOfMessage) -> bool:
        """False: the server has heard enough; what it says of that is read."""
        data = self._upstream.send(event)
        try:
            await self._send(data)
        except OSError:
            return False
        return True

    async def _send(self, data: bytes | None) -> None:
        if data:
            self._flow.sent(len(data))
            self._to_server.write(data)
            await self._to_server.drain()

    async def _answer(self) -> None:
        while True:
            event = await self._event()
            if isinstance(event, h11.Response):
                await self._pass(self._response(event))
            elif isinstance(event, h11.Data):
                await self._pass(h11.Data(event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._pass(h11.EndOfMessage())
                return
            elif not isinstance(event, h11.InformationalResponse):
                raise Unreachable("its answer broke off")

    async def _event(self) -> object:
        try:
            while (event := self._upstream.next_event()) is h11.NEED_DATA:
                data = await self._received()
                self._upstream.receive_data(data)
        except h11.RemoteProtocolError as wrong:
            raise Unreachable(f"its answer is not HTTP: {wrong}") from None
        return event

    async def _received(self) -> bytes:
        try:
            data = await self._from_server.read(CHUNK_BYTES)
        except OSError as broken:
            raise Unreachable(f"its answer broke off ({broken.strerror or broken})") from None
        if not data and self._upstream.their_state is h11.SEND_RESPONSE and not self._upstream.trailing_data[0]:
            raise Unreachable("it closed the connection without an answer")
        self._flow.received(len(data))
        return data

    def _response(self, response: h11.Response) -> h11.Response:
        headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers]
        kept = list(_end_to_end(headers))
        if any(name == "transfer-encoding" for name, _ in headers):
            kept = [(name, value) for name, value in kept if name != "content-length"]
        return h11.Response(
            status_code=response.status_code,
            reason=response.reason,
            headers=_bytes([*kept, ("connection", "close")]),
        )

    async def _pass(self, event: h11.Response | h11.Data | h11.EndOfMessage) -> None:
        data = self._downstream.send(event)
        if data:
            await self._to_client.send(data)

    def _bad(self, why: str) -> Refused:
        return Refused(self._flow.host, self._flow.port, why, "send one well-formed HTTP/1.1 request", status=400)


def _answering(head: Head) -> h11.Connection:
    """The client's side, as far as an answer's framing depends on it: its version and whether it was HEAD."""
    connection = h11.Connection(h11.SERVER)
    method = "HEAD" if head.method == "HEAD" else "GET"
    connection.receive_data(f"{method} / HTTP/{head.version}\r\nHost: client\r\nConnection: close\r\n\r\n".encode())
    connection.next_event()
    return connection


def _end_to_end(headers: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    headers = list(headers)
    named = {token.strip().lower() for name, value in headers if name == "connection" for token in value.split(",")} - {
        "content-length",
        "host",
    }
    return [(name, value) for name, value in headers if name not in _HOP_BY_HOP and name not in named]


def _bytes(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
