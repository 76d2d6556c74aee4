"""Plain HTTP inside a tunnel to port 80: some clients use CONNECT for `http://` too. Knows nothing of the server.

It is read and passed on as the same request in absolute form would be, so that CONNECT is no way round the rule that
Host is the host that was allowed. One exchange, then the tunnel ends.
"""

from __future__ import annotations

from asyncio import StreamReader
from collections.abc import AsyncIterator

import h11

from orchestrator.gateway.egress_flow import CHUNK_BYTES, Cut, Flow
from orchestrator.gateway.egress_http import HEAD_BYTES
from orchestrator.gateway.egress_policy import Refused, shown
from orchestrator.gateway.egress_port import Head
from orchestrator.gateway.egress_target import check_host


class InnerRequest:
    """The request that begins with `first`."""

    def __init__(self, reader: StreamReader, first: bytes, flow: Flow) -> None:
        self._reader = reader
        self._flow = flow
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._connection.receive_data(first)

    async def head(self) -> Head:
        """Its head, whose Host was checked. Raises Refused; Cut where the client left."""
        try:
            event = await self._event()
        except ValueError as wrong:
            raise self._refused(f"not HTTP, in a tunnel to port {self._flow.port}: {wrong}", 400) from None
        if not isinstance(event, h11.Request):
            raise Cut("the client left")
        head = Head(
            event.method.decode("ascii"),
            event.target.decode("ascii"),
            tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers),
            event.http_version.decode("ascii"),
        )
        if not head.target.startswith("/") or head.method == "CONNECT":
            raise self._refused(f"its request is for {shown(head.target)}, in a tunnel", 400)
        check_host(head, self._flow.host, self._flow.port)
        return head

    async def body(self) -> AsyncIterator[bytes]:
        """What follows the head, without its framing. Raises ValueError where that breaks."""
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise ValueError("it ends early")
            yield bytes(event.data)

    async def _event(self) -> object:
        try:
            while (event := self._connection.next_event()) is h11.NEED_DATA:
                self._connection.receive_data(await self._reader.read(CHUNK_BYTES))
        except h11.RemoteProtocolError as wrong:
            raise ValueError(str(wrong)) from None
        return event

    def _refused(self, why: str, status: int) -> Refused:
        return Refused(self._flow.host, self._flow.port, why, "send plain HTTP/1.1, or TLS on port 443", status=status)
