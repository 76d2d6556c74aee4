"""What a program inside reads when it may not, or cannot, connect. Knows no connection and no policy.

The reason phrase says it as well: of a proxy's answer to CONNECT most clients show nothing else.
"""

from __future__ import annotations

import contextlib
import json
from asyncio import StreamWriter
from http import HTTPStatus
from typing import Final

from orchestrator.gateway.egress_policy import Refused

CUT_STATUS: Final = 504
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
REASON_CHARS: Final = 300


class Answer:
    """To one request. `started`: some of it has been written, so that nothing else can be said any more."""

    def __init__(self, client: StreamWriter, *, body: bool = True) -> None:
        self.client = client
        self.body = body
        self.started = False

    async def send(self, data: bytes) -> None:
        """A part of it. Raises OSError once the client has gone."""
        self.started = True
        self.client.write(data)
        await self.client.drain()

    async def instead(self, whole: bytes) -> None:
        """All of it, if nothing has been said yet."""
        if not self.started:
            with contextlib.suppress(OSError):
                await self.send(whole)


def refusal(refused: Refused, *, body: bool = True) -> bytes:
    """The whole answer to a request that was refused. `body` False: to HEAD."""
    where = f"{refused.host}:{refused.port}" if refused.port else refused.host
    message = f"{where} refused by Carrel: {refused.why}"
    error = {
        "code": "egress_refused",
        "message": message,
        "host": refused.host,
        "port": refused.port,
        "why": refused.why,
        "remedy": refused.remedy,
    }
    return _answer(refused.status, f"{message}; {refused.remedy}" if refused.remedy else message, error, body)


def unreachable(host: str, port: int, why: str, *, status: int = 502, body: bool = True) -> bytes:
    """The whole answer where the connection was allowed and did not come about."""
    message = f"{host}:{port} cannot be reached: {why}"
    error = {"code": "egress_unreachable", "message": message, "host": host, "port": port, "why": why}
    return _answer(status, message, error, body)


def _answer(status: int, reason: str, error: dict[str, object], body: bool) -> bytes:
    content = json.dumps({"error": error}).encode() + b"\n"
    plain = "".join(c if " " <= c <= "~" else "?" for c in reason[:REASON_CHARS])
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}: {plain}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + (content if body else b"")
