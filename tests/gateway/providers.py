"""Providers that misbehave: TCP servers of a test's own, which answer each request by a script of bytes and pauses."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import h11

from orchestrator.models import ModelApi


@dataclass
class Asking:
    """One request as the provider got it, and its end of the connection."""

    head: h11.Request
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int  # from 1

    def header(self, name: str) -> str:
        return next((value.decode() for known, value in self.head.headers if known.decode() == name), "")

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int, body: bytes, *headers: str) -> None:
        lines = [f"HTTP/1.1 {status} x", f"content-length: {len(body)}", *headers]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def stream_head(self, *headers: str) -> None:
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "transfer-encoding: chunked", *headers]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    def cut(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Asking], Awaitable[None]]


@dataclass
class Provider:
    """`asked`: every request, in order."""

    url: str
    asked: list[Asking] = field(default_factory=list)
    connections: int = 0


@contextlib.asynccontextmanager
async def provider(script: Script) -> AsyncIterator[Provider]:
    """Serves `script` until the block ends. One connection may carry several requests."""
    made = Provider("")
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        http = h11.Connection(h11.SERVER)
        try:
            while (one := await _request(http, reader, writer, len(made.asked) + 1)) is not None:
                made.asked.append(one)
                await script(one)
                if writer.transport.is_closing():
                    return
                http = h11.Connection(h11.SERVER)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


async def _request(
    http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
) -> Asking | None:
    head: h11.Request | None = None
    body = b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(1 << 16))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return Asking(head, body, reader, writer, number)
        else:
            return None


# ---- answers, as the providers write them


def whole(api: ModelApi, text: str = "Hi.", *, usage: bool = True) -> bytes:
    """A JSON answer of 10 tokens in, 3 out."""
    answer: dict[str, Any]
    match api:
        case ModelApi.MESSAGES:
            answer = {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": "cheap-1",
                "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn",
                "stop_sequence": None,
                "usage": {"input_tokens": 10, "output_tokens": 3},
            }
        case ModelApi.CHAT:
            answer = {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": "cheap-1",
                "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
            }
        case ModelApi.RESPONSES:
            part = {"type": "output_text", "text": text, "annotations": []}
            answer = {
                "id": "resp_1",
                "object": "response",
                "status": "completed",
                "model": "cheap-1",
                "output": [
                    {"type": "message", "id": "m_1", "role": "assistant", "status": "completed", "content": [part]}
                ],
                "usage": {"input_tokens": 10, "output_tokens": 3, "total_tokens": 13},
            }
    if not usage:
        del answer["usage"]
    return json.dumps(answer).encode()


def events(api: ModelApi, *texts: str) -> list[bytes]:
    """A stream's events, its mark last: 10 tokens in, 3 out."""
    texts = texts or ("Hel", "lo.")
    match api:
        case ModelApi.MESSAGES:
            start = json.loads(whole(api)) | {"content": [], "stop_reason": None}
            block = {"type": "text", "text": ""}
            parts: Sequence[dict[str, Any]] = [
                {"type": "message_start", "message": start},
                {"type": "content_block_start", "index": 0, "content_block": block},
                *(
                    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}
                    for text in texts
                ),
                {"type": "content_block_stop", "index": 0},
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                    "usage": {"output_tokens": 3},
                },
                {"type": "message_stop"},
            ]
            return [named(part) for part in parts]
        case ModelApi.CHAT:
            frame = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "cheap-1"}
            deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": t} for t in texts)]
            chunks = [{**frame, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
            chunks.append({**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            chunks.append({**frame, "choices": [], "usage": json.loads(whole(api))["usage"]})
            return [*(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks), b"data: [DONE]\n\n"]
        case ModelApi.RESPONSES:
            done = json.loads(whole(api, "".join(texts)))
            at = {"item_id": "m_1", "output_index": 0, "content_index": 0}
            return [
                named(part)
                for part in (
                    {"type": "response.created", "response": done | {"status": "in_progress", "output": []}},
                    *({"type": "response.output_text.delta", **at, "delta": text} for text in texts),
                    {"type": "response.completed", "response": done},
                )
            ]


def named(said: Mapping[str, Any]) -> bytes:
    return f"event: {said['type']}\ndata: {json.dumps(said)}\n\n".encode()


def streaming(api: ModelApi, *, cut_after: int | None = None, clean: bool = False) -> Script:
    """Streams an answer, an event a chunk; cut after so many events, or ended by HTTP without its mark (`clean`)."""

    async def answer(asking: Asking) -> None:
        await asking.stream_head()
        for event in events(api)[:cut_after]:
            await asking.chunk(event)
        if cut_after is None or clean:
            await asking.end()
        else:
            asking.cut()

    return answer


def by_turns(*scripts: Script) -> Script:
    """The first request gets the first; the last one stays."""

    async def answer(asking: Asking) -> None:
        await scripts[min(asking.number, len(scripts)) - 1](asking)

    return answer


def refusing(status: int, body: bytes = b'{"error":{"message":"no"}}', *headers: str) -> Script:
    async def answer(asking: Asking) -> None:
        await asking.answer(status, body, "content-type: application/json", *headers)

    return answer


def answering(api: ModelApi, text: str = "Hi.") -> Script:
    async def answer(asking: Asking) -> None:
        await asking.answer(200, whole(api, text), "content-type: application/json")

    return answer
