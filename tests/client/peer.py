"""A real peer with a script: an HTTP/1.1 server on 127.0.0.1 that serves one history and cuts its connections where it
is told to. Enough of HTTP for the client, and nothing of Carrel's server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from orchestrator.events import Cursor


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """What to send back; after `cut_at` bytes (head included) the connection is reset. None = whole."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None
    stream: bool = False

    def raw(self) -> bytes:
        """The bytes of it. A stream has no length: it ends with its connection."""
        head = f"HTTP/1.1 {self.status} X\r\n"
        headers = {**self.headers, "connection": "close"}
        if not self.stream and self.status not in (204, 304):
            headers["content-length"] = str(len(self.body))
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return head.encode() + b"\r\n" + self.body


@dataclass
class Peer:
    """`asked` holds every request that arrived whole, in order."""

    answer: Callable[[Asked], Answer]
    asked: list[Asked] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request, *lines = head.split("\r\n")
            method, target, _ = request.split(" ")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            parts = urlsplit(target)
            asked = Asked(method, parts.path, parse_qs(parts.query), headers, body)
            self.asked.append(asked)
            answer = self.answer(asked)
            raw = answer.raw()
            writer.write(raw if answer.cut_at is None else raw[: answer.cut_at])
            await writer.drain()
            if answer.cut_at is not None:
                writer.transport.abort()  # RST, as a killed process gives
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def peer(answer: Callable[[Asked], Answer]) -> AsyncIterator[Peer]:
    """Serves on a free port until the block ends."""
    served = Peer(answer)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        await server.wait_closed()


def event(seq: int, text: str = "") -> dict[str, object]:
    """An event as it is on the wire."""
    return {
        "seq": seq,
        "type": "output",
        "time": "2025-01-31T08:15:00.123Z",
        "attempt": 1,
        "source": "harness",
        "data": {"stream": "stdout", "data": text or f"line {seq}\n"},
    }


def sse_of(kind: str, data: object, seq: int) -> bytes:
    """One server-sent event, with its cursor."""
    return f"id: {Cursor(1, seq)}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def history_after(query: dict[str, list[str]], total: int, *, ended: bool = True) -> bytes:
    """The stream a server would send to this query, of a history 1…total."""
    if "tail" in query:
        first = max(1, total - int(query["tail"][0]) + 1)
    else:
        after = query["after"][0]
        first = (int(after) if after.isdigit() else Cursor.parse(after).seq) + 1
    pieces: list[bytes] = [b": hello\n\n"]
    pieces += [sse_of("event", event(seq), seq) for seq in range(first, total + 1)]
    pieces.append(sse_of("up_to_date", {}, total))
    if ended:
        pieces.append(sse_of("closed", {}, total))
    return b"".join(pieces)


def in_turn(answers: Sequence[Answer]) -> Callable[[Asked], Answer]:
    """Answers one after another; asking once more is an error of the test."""
    left: Iterator[Answer] = iter(answers)
    return lambda _: next(left)
