"""The servers of a test's own internet, one process for a namespace: a DNS server that says what it is told to, web
servers, a TLS echo, raw echoes, and a log of every connection that reaches any of them.

Started by `tests/internet.py` with one JSON argument: {addresses, names, certificate}. `names`: name → type (A, AAAA)
→ answers, each a list of addresses; the n-th question gets the n-th, the last one stays. Prints one JSON line for each
thing that happens, `{"ready": true}` first, and for each line {"ask": n} on stdin an answer, behind all that happened
before it was asked. Standard library only: it may run where nothing else is.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import ssl
import sys
from asyncio import StreamReader, StreamWriter
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

TYPES = {1: "A", 28: "AAAA"}
MIB = 1024 * 1024
GO: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
Serve = Callable[[StreamReader, StreamWriter], Awaitable[None]]


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


class Dns(asyncio.DatagramProtocol):
    """RFC 1035, as much as getaddrinfo asks: one question, answers with TTL 0."""

    def __init__(self, names: dict[str, dict[str, list[list[str]]]]) -> None:
        self.names = names
        self.asked: dict[tuple[str, str], int] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: Any) -> None:
        at, labels = 12, []
        while size := data[at]:
            labels.append(data[at + 1 : at + 1 + size].decode("ascii").lower())
            at += size + 1
        name, kind = ".".join(labels), TYPES.get(int.from_bytes(data[at + 1 : at + 3], "big"), "")
        question = data[12 : at + 5]
        if self.names.get(name, {}).get("silent"):
            say(dns=name, type=kind, answer="silence")
            return
        turns = self.names.get(name, {}).get(kind, [[]])
        turn = self.asked.get((name, kind), 0)
        self.asked[name, kind] = turn + 1
        addresses = [ipaddress.ip_address(text) for text in turns[min(turn, len(turns) - 1)]]
        say(dns=name, type=kind, answer=[str(address) for address in addresses])
        answers = b"".join(
            b"\xc0\x0c" + data[at + 1 : at + 5] + bytes(4) + len(each.packed).to_bytes(2, "big") + each.packed
            for each in addresses
        )
        flags = 0x8180 if name in self.names else 0x8183  # 3: no such name
        header = data[:2] + flags.to_bytes(2, "big") + b"\0\1" + len(addresses).to_bytes(2, "big") + bytes(4)
        self.transport.sendto(header + question + answers, source)


async def logged(kind: str, serve: Serve, reader: StreamReader, writer: StreamWriter) -> None:
    here = writer.get_extra_info("sockname")
    say(connection=kind, address=here[0], port=here[1])
    try:
        await serve(reader, writer)
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
        say(closed=kind, address=here[0], port=here[1])


async def web(reader: StreamReader, writer: StreamWriter) -> None:
    """Keep-alive, on purpose: a second request on the same connection would be served."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        lines = head.decode("latin-1").split("\r\n")
        method, target, version = lines[0].split(" ")
        headers = [line.partition(": ")[::2] for line in lines[1:] if line]
        fields = {name.lower(): value for name, value in headers}
        body = b""
        if "chunked" in fields.get("transfer-encoding", ""):
            while size := int((await reader.readline()).split(b";")[0], 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        elif "content-length" in fields:
            body = await reader.readexactly(int(fields["content-length"]))
        say(request=method, target=target, host=fields.get("host"))
        path, _, query = target.partition("?")
        if path == "/redirect":
            writer.write(f"HTTP/1.1 302 Found\r\nLocation: {query}\r\nContent-Length: 0\r\n\r\n".encode())
        elif path == "/broken":
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            return
        elif path == "/until-close":
            writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold but whole")
            return
        elif path == "/hang-up":
            return
        elif path == "/nonsense":
            writer.write(b"SSH-2.0-not-http\r\n")
            return
        elif path == "/bytes":
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {query}\r\n\r\n".encode())
            for _ in range(int(query) // MIB):
                writer.write(bytes(MIB))
                await writer.drain()
        elif path == "/drip":  # one chunk now, the rest when the client has said so by another request
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            await GO[query].wait()
            writer.write(b"4\r\nlast\r\n0\r\n\r\n")
        elif path == "/go":
            GO[query].set()
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            content = json.dumps(
                {"method": method, "target": target, "version": version, "headers": headers, "body": body.decode()}
            ).encode()
            extra = "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-Kept: yes\r\n"
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(content)}\r\n{extra}\r\n".encode())
            writer.write(b"" if method == "HEAD" else content)
        await writer.drain()


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    say(end_of_input=True)
    if writer.can_write_eof():
        writer.write(b"<eof>")
        writer.write_eof()


async def banner(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(b"220 speak\n")
    await echo(reader, writer)


async def flood(_: StreamReader, writer: StreamWriter) -> None:
    sent = 0
    while True:
        writer.write(bytes(MIB))
        await writer.drain()
        sent += 1
        say(flooded_mib=sent)


def tls(certificate: str, *, curve: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if curve:
        context.set_ecdh_curve(curve)
    context.sni_callback = lambda _socket, name, _context: say(sni=name)
    return context


async def main(plan: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    if plan["names"]:
        names = plan["names"]
        await loop.create_datagram_endpoint(lambda: Dns(names), local_addr=(plan["addresses"][0], 53))
    plain: list[tuple[str, Serve, int]] = [
        ("web", web, 80),
        ("web", web, 8080),
        ("raw", banner, 22),
        ("raw", echo, 9000),
        ("flood", flood, 9001),
    ]
    certificate = plan.get("certificate", "")
    secret: list[tuple[int, ssl.SSLContext | None]] = [
        (443, tls(certificate) if certificate else None),
        (8443, tls(certificate) if certificate else None),
        (9443, tls(certificate, curve="secp384r1") if certificate else None),  # asks every client for a second hello
    ]
    for kind, serve, port in plain:
        await asyncio.start_server(partial(logged, kind, serve), plan["addresses"], port)
    for port, context in secret:
        await asyncio.start_server(partial(logged, "tls", echo), plan["addresses"], port, ssl=context)
    say(ready=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):  # until whoever started us is gone
        for _ in range(20):  # turns of the loop: what came before the question has been said by then
            await asyncio.sleep(0)
        say(asked=json.loads(line)["ask"])


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
