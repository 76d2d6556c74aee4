"""The only place that touches httpx: carries out one step, sync or async. Decides nothing.

Every failure of the network becomes a `Failure` whose `sent` says whether the server can have seen the request.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx

from orchestrator.client.address import Address
from orchestrator.client.exchange import Body, Exchange, Failure, Open, Read, Request, Response, Sleep, Step

CONNECT_S = 10.0
#: Silence on an open connection after which it counts as dead. Event streams are never silent that long: the server
#: sends a comment every 15 s.
SILENCE_S = 60.0
CHUNK_BYTES = 256 * 1024
LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=30.0)


def _timeout(request: Request[Any], silence_s: float) -> httpx.Timeout:
    return httpx.Timeout(silence_s + request.hold_s, connect=min(CONNECT_S, silence_s), pool=None)


def _headers(token: str) -> dict[str, str]:
    # identity: byte offsets and content-length mean what they say.
    headers = {"accept-encoding": "identity", "user-agent": "carrel-client"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    return headers


def _failure(error: Exception) -> Failure:
    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return Failure(str(error) or type(error).__name__, sent=sent)


def _response(status: int, headers: httpx.Headers, body: bytes) -> Response:
    return Response(status, {name.lower(): value for name, value in headers.items()}, body)


def _pieces(body: Path | Iterable[bytes]) -> Iterator[bytes]:
    if not isinstance(body, Path):
        yield from (piece for piece in body if piece)
        return
    with body.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


class SyncTransport:
    """One pool of connections. Thread-safe; streams are opened through `lines`, one per follower."""

    def __init__(self, address: Address, token: str, silence_s: float = SILENCE_S) -> None:
        self._silence_s = silence_s
        self._http = httpx.Client(
            base_url=address.base,
            headers=_headers(token),
            transport=httpx.HTTPTransport(verify=address.is_tls, uds=address.socket, limits=LIMITS),
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def line(self) -> SyncLine:
        """One asker: at most one opened answer at a time."""
        return SyncLine(self._http, self._silence_s)


class SyncLine:
    """Carries out the steps of one generator. Close it when the generator is done or dropped."""

    def __init__(self, http: httpx.Client, silence_s: float) -> None:
        self._http = http
        self._silence_s = silence_s
        self._open: httpx.Response | None = None
        self._pieces: Iterator[bytes] = iter(())

    def step(self, step: Step) -> Response | Failure | bytes | None:
        """What came of it."""
        match step:
            case Sleep(delay_s=delay_s):
                time.sleep(delay_s)
                return None
            case Exchange(request=request):
                return self._exchange(request)
            case Open(request=request):
                return self._head(request)
            case Read():
                return self._read()

    def _build(self, request: Request[Any]) -> httpx.Request:
        return self._http.build_request(
            request.method,
            _url(request),
            headers=dict(request.headers),
            content=_sync_content(request.body),
            timeout=_timeout(request, self._silence_s),
        )

    def _exchange(self, request: Request[Any]) -> Response | Failure:
        try:
            got = self._http.send(self._build(request))
            return _response(got.status_code, got.headers, got.content)
        except httpx.HTTPError as error:
            return _failure(error)

    def _head(self, request: Request[Any]) -> Response | Failure:
        self.close()
        try:
            got = self._http.send(self._build(request), stream=True)
            if got.status_code not in (200, 206):
                try:
                    return _response(got.status_code, got.headers, got.read())
                finally:
                    got.close()
        except httpx.HTTPError as error:
            return _failure(error)
        self._open, self._pieces = got, got.iter_raw()
        return _response(got.status_code, got.headers, b"")

    def _read(self) -> bytes | Failure:
        try:
            return next(self._pieces, b"")
        except httpx.HTTPError as error:
            return _failure(error)

    def close(self) -> None:
        """Drop the opened answer, if there is one."""
        if self._open is not None:
            self._open.close()
            self._open, self._pieces = None, iter(())


class AsyncTransport:
    """One pool of connections, for one event loop."""

    def __init__(self, address: Address, token: str, silence_s: float = SILENCE_S) -> None:
        self._silence_s = silence_s
        self._http = httpx.AsyncClient(
            base_url=address.base,
            headers=_headers(token),
            transport=httpx.AsyncHTTPTransport(verify=address.is_tls, uds=address.socket, limits=LIMITS),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def line(self) -> AsyncLine:
        """One asker: at most one opened answer at a time."""
        return AsyncLine(self._http, self._silence_s)


class AsyncLine:
    """Carries out the steps of one generator. Close it when the generator is done or dropped."""

    def __init__(self, http: httpx.AsyncClient, silence_s: float) -> None:
        self._http = http
        self._silence_s = silence_s
        self._open: httpx.Response | None = None
        self._pieces: AsyncIterator[bytes] | None = None

    async def step(self, step: Step) -> Response | Failure | bytes | None:
        """What came of it."""
        match step:
            case Sleep(delay_s=delay_s):
                await asyncio.sleep(delay_s)
                return None
            case Exchange(request=request):
                return await self._exchange(request)
            case Open(request=request):
                return await self._head(request)
            case Read():
                return await self._read()

    def _build(self, request: Request[Any]) -> httpx.Request:
        return self._http.build_request(
            request.method,
            _url(request),
            headers=dict(request.headers),
            content=_async_content(request.body),
            timeout=_timeout(request, self._silence_s),
        )

    async def _exchange(self, request: Request[Any]) -> Response | Failure:
        try:
            got = await self._http.send(self._build(request))
            return _response(got.status_code, got.headers, got.content)
        except httpx.HTTPError as error:
            return _failure(error)

    async def _head(self, request: Request[Any]) -> Response | Failure:
        await self.aclose()
        try:
            got = await self._http.send(self._build(request), stream=True)
            if got.status_code not in (200, 206):
                try:
                    return _response(got.status_code, got.headers, await got.aread())
                finally:
                    await got.aclose()
        except httpx.HTTPError as error:
            return _failure(error)
        self._open, self._pieces = got, got.aiter_raw()
        return _response(got.status_code, got.headers, b"")

    async def _read(self) -> bytes | Failure:
        assert self._pieces is not None, "Read comes after Open"
        try:
            return await anext(self._pieces, b"")
        except httpx.HTTPError as error:
            return _failure(error)

    async def aclose(self) -> None:
        """Drop the opened answer, if there is one."""
        if self._open is not None:
            opened, self._open, self._pieces = self._open, None, None
            with contextlib.suppress(httpx.HTTPError):
                await opened.aclose()


def _url(request: Request[Any]) -> str:
    # Spelled here: names in a query need not be UTF-8 either (surrogateescape).
    query = urlencode(request.query, doseq=True, errors="surrogateescape")
    return f"{request.path}?{query}" if query else request.path


def _sync_content(body: Body) -> bytes | Iterator[bytes]:
    return body if isinstance(body, bytes) else _pieces(body)


def _async_content(body: Body) -> bytes | AsyncIterator[bytes]:
    return body if isinstance(body, bytes) else _async_pieces(body)


async def _async_pieces(body: Path | Iterable[bytes]) -> AsyncIterator[bytes]:
    pieces = _pieces(body)
    while piece := await asyncio.to_thread(next, pieces, b""):
        yield piece
