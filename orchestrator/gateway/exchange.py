"""One connection from the sandbox, which carries one exchange: a request in, an answer out. Knows HTTP and its limits,
not what is asked.

The client is hostile: the head has a size and a time, the body a size and a pace, and what nobody takes is not written
on. What the client sees of the end is what there was: an answer that broke off has no end of HTTP's, ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Iterable
from typing import Final

import h11

from orchestrator.gateway.egress_port import Head
from orchestrator.gateway.refusals import Refused, Tongue
from orchestrator.gateway.room import Holding

HEAD_BYTES: Final = 32 << 10  # of a head that is not whole; one that just becomes so may have twice that
HEAD_S: Final = 15.0  # from the connection to the head's last byte
PACE_S: Final = 30.0  # between two reads of a body
LANDING_S: Final = 1.0  # after the last byte: for the client to take it and go
READ_BYTES: Final = 256 << 10
_HUNG_UP_S: Final = 0.5  # how often a client that sends no more is looked at
_LINGER_BYTES: Final = 64 << 20

Headers = Iterable[tuple[str, str]]


class Exchange:
    """`started`: a byte of an answer may have gone out."""

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.started = False
        self.old = False  # HTTP/1.0: no chunks, so a break could not be told from an end
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        self._head = b""  # of the answer: goes with the first of the body
        self._watch: asyncio.Task[bool] | None = None
        # Above nothing: `drain` returns when the kernel has all of it, so a slow client is felt at once.
        writer.transport.set_write_buffer_limits(high=0)

    async def head(self) -> Head | None:
        """None: the client went without asking anything. Raises Refused: 400, 408, 431."""
        try:
            async with asyncio.timeout(HEAD_S):
                event = await self._next()
        except TimeoutError:
            raise Refused(408, "slow", f"the request's head did not come within {HEAD_S:.0f} s") from None
        if not isinstance(event, h11.Request):
            return None
        version = event.http_version.decode()
        self.old = version < "1.1"
        return Head(
            event.method.decode(),
            event.target.decode("latin-1"),
            tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers),
            version,
        )

    async def body(self, limit_bytes: int, holding: Holding) -> bytes:
        """All of it, counted in `holding`. Raises Refused: 400, 408, 413, 429."""
        parts = bytearray()
        async for data in self.stream():
            parts += data
            holding.add(len(data))
            if len(parts) > limit_bytes:
                raise Refused(
                    413,
                    "too_large",
                    f"the request has more than {limit_bytes} bytes; send less: shorter context, smaller attachments",
                    field="body",
                    limit=f"{limit_bytes} bytes",
                    told=True,
                )
        return bytes(parts)

    async def stream(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Refused, which a body in pieces may do at each."""
        if self._http.they_are_waiting_for_100_continue:
            await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
        while True:
            try:
                async with asyncio.timeout(PACE_S):
                    event = await self._next()
            except TimeoutError:
                raise Refused(408, "slow", f"the request's body stood still for {PACE_S:.0f} s") from None
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise Refused(400, "invalid", "the request's body broke off")

    async def plain(self) -> AsyncIterator[bytes]:
        """The body for who knows nothing of refusals: raises ValueError instead."""
        try:
            async for data in self.stream():
                yield data
        except Refused as refused:
            raise ValueError(refused.message) from None

    def leftover(self) -> bytes:
        """What came behind a CONNECT's head."""
        return bytes(self._http.trailing_data[0])

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            try:
                event = self._http.next_event()
                if event is not h11.NEED_DATA:
                    return event
                waits_for_head = self._http.their_state is h11.IDLE
                self._http.receive_data(await self.reader.read(HEAD_BYTES if waits_for_head else READ_BYTES))
            except h11.RemoteProtocolError as error:
                raise Refused(error.error_status_hint, "invalid", f"not a request: {error}") from error
            except ConnectionError:
                return h11.ConnectionClosed()

    async def refuse(self, refused: Refused, tongue: Tongue) -> None:
        """The whole answer, if none was begun; otherwise break off."""
        if self.started:
            self.break_off()
            return
        await self.answer(refused.status, refused.headers(), refused.body(tongue))

    async def answer(self, status: int, headers: Headers, body: bytes, *, bodyless: bool = False) -> None:
        """A whole answer. `bodyless`: to a HEAD."""
        self.begin(status, [*headers, ("content-length", str(len(body)))])
        if body and not bodyless:
            await self.send(body)
        await self.end()

    def begin(self, status: int, headers: Headers) -> None:
        """The answer's head; without a content-length it goes in chunks. Written with what follows."""
        if self._http.their_state is h11.ERROR or self._http.our_state is not h11.SEND_RESPONSE:
            # What came was no request: h11 has nothing to answer to, the client has.
            self._http = h11.Connection(h11.SERVER)
            self._http.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            self._http.next_event()
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]
        response = h11.Response(status_code=status, headers=[*raw, (b"connection", b"close")])
        self._head = self._http.send(response) or b""

    async def send(self, data: bytes) -> None:
        await self._write(self._http.send(h11.Data(data=data)))

    async def end(self) -> None:
        """The answer is whole. Raises ConnectionError."""
        await self._write(self._http.send(h11.EndOfMessage()))
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.write_eof()

    def break_off(self) -> None:
        """No more, and no end."""
        self.writer.transport.abort()

    async def _write(self, data: bytes | None) -> None:
        head, self._head = self._head, b""
        if head or data:
            self.started = True
            self.writer.write(head + (data or b""))
            await self.writer.drain()

    def watch(self) -> asyncio.Task[bool]:
        """Done when the client is gone, with whether it went in peace: True = it had read all that was written. To be
        asked for once the body is over. A client that only says it will send no more is not gone."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._gone(), name="gateway-client")
        return self._watch

    async def _gone(self) -> bool:
        seen = 0
        try:
            while data := await self.reader.read(READ_BYTES):
                seen += len(data)
                if seen > _LINGER_BYTES:
                    return False
            waiting = select.poll()
            waiting.register(self.writer.get_extra_info("socket").fileno(), 0)
            while not waiting.poll(0):  # noqa: ASYNC110  # no POLLHUP: half closed; no loop tells of more
                await asyncio.sleep(_HUNG_UP_S)
        except (OSError, ValueError):
            return False  # reset: there were bytes it had not read
        return True

    async def landed(self) -> bool:
        """After `end`: whether the client has it, as far as anybody can know. The kernel took all of it, and the client
        did not close before it had read it."""
        done, _ = await asyncio.wait({self.watch()}, timeout=LANDING_S)
        return not done or self.watch().result()

    async def close(self) -> None:
        """After the answer: what the client still sends is read and dropped for a moment, so that it gets to see it."""
        if self.started and not self.writer.transport.is_closing():
            await asyncio.wait({self.watch()}, timeout=LANDING_S)
        self.abandon()

    def abandon(self) -> None:
        """At once, answered or not."""
        if self._watch is not None:
            self._watch.cancel()
        self.writer.close()
