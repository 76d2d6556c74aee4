"""What is passed on to a server and must not happen twice commits the client first: with a byte, before the server
hears of it. From that byte on init's outlet says it to no other worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from orchestrator.gateway.egress_answer import Answer
from orchestrator.gateway.egress_flow import Flow, Traffic
from orchestrator.gateway.egress_http import Exchange
from orchestrator.gateway.egress_port import Head

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def no_body() -> AsyncIterator[bytes]:
    chunks: list[bytes] = []
    for chunk in chunks:
        yield chunk


async def exchanged(head: Head, told: bytes) -> bytes:
    """What the client reads in the end. The server answers only when the client has read `told`."""
    heard: list[bytes] = []
    to_client: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
    front = await asyncio.start_server(lambda _, writer: to_client.set_result(writer), "127.0.0.1", 0)
    from_gateway, client = await asyncio.open_connection(*front.sockets[0].getsockname())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        heard.append(await from_gateway.readexactly(len(told)))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        upstream = await asyncio.open_connection(*server.sockets[0].getsockname())
        flow = Flow(Traffic(), lambda: True, "sink.example", 80)
        async with flow.limit:
            await Exchange(head, "/", upstream, Answer(await to_client), flow).run(no_body())
        for writer in (upstream[1], await to_client):
            writer.close()
        return b"".join([*heard, await from_gateway.read()])
    finally:
        client.close()
        server.close()
        front.close()


@pytest.mark.parametrize(
    ("method", "version", "expect", "told"),
    [
        ("POST", "1.1", "", CONTINUE),
        ("PATCH", "1.1", "", CONTINUE),
        ("DELETE", "1.1", "", CONTINUE),
        ("MOVE", "1.1", "", CONTINUE),
        ("POST", "1.1", "100-continue", CONTINUE),
        ("GET", "1.1", "100-continue", CONTINUE),
        ("GET", "1.1", "", b""),
        ("HEAD", "1.1", "", b""),
        ("POST", "1.0", "", b""),
    ],
)
async def test_an_interim_answer_comes_before_what_must_not_happen_twice(
    method: str, version: str, expect: str, told: bytes
) -> None:
    headers = [("host", "sink.example"), *([("expect", expect)] if expect else [])]
    said = await exchanged(Head(method, "http://sink.example/", tuple(headers), version), told)
    assert said.startswith(told + b"HTTP/1.1 204 ") and said.count(b"HTTP/1.1") == 1 + bool(told)
