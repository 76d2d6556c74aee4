"""The door every request and every socket passes first: Host, Origin, body size, token. Knows no route.

The CORS middleware of the framework does not see WebSockets, and a check that has to be written on each route is
forgotten on one; so this is one ASGI middleware around everything, and only OPEN_PATHS need no token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.errors import CarrelError, Forbidden, Unauthorized
from orchestrator.server import problems
from orchestrator.server.auth import Authenticator
from orchestrator.wire.bounds import BODY_BYTES

OPEN_PATHS: Final = frozenset({"/healthz"})
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_TOKEN_PARAMETERS: Final = frozenset({"token", "access_token", "api_key", "apikey", "authorization", "bearer"})
_SECURITY_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Door:
    """Around the whole app. Bodies are bounded by BODY_BYTES while they come in, but for uploads (`is_streamed`)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticator: Authenticator,
        allowed_hosts: Iterable[str],
        allowed_origins: Iterable[str],
        stall_limit_s: float,
    ) -> None:
        self._app = app
        self._stall_limit_s = stall_limit_s
        self._authenticator = authenticator
        self._hosts = frozenset(_hostname(host) for host in (*_LOOPBACK, *allowed_hosts))
        self._origins = frozenset(_origin(origin) for origin in allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers)
            self._check_origin(headers)
            _check_query(scope["query_string"])
            if scope["path"] not in OPEN_PATHS:
                scope["carrel.token"] = await self._authenticator.caller(headers)
            if scope["type"] == "http":
                receive = self._bounded(scope, headers, receive)
        except CarrelError as refusal:
            await _refuse(refusal, scope, receive, send)
            return
        await self._app(scope, receive, _guarded(send) if scope["type"] == "http" else send)

    def _bounded(self, scope: Scope, headers: Headers, receive: Receive) -> Receive:
        """The body as it comes, until it is too large or does not come any more."""
        if is_streamed(scope):
            return receive
        said = headers.get("content-length", "")
        if said.isdigit() and int(said) > BODY_BYTES:
            raise problems.body_too_large()
        got, more = 0, True

        # The framework turns any other exception of a body's reader into 400; problems.py knows these two.
        async def bounded() -> Message:
            nonlocal got, more
            if not more:
                return await receive()  # waits for the caller to leave
            try:
                async with asyncio.timeout(self._stall_limit_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not come") from None
            got += len(message.get("body", b""))
            if got > BODY_BYTES:
                raise HTTPException(413)
            more = message.get("more_body", False)
            return message

        return bounded

    def _check_host(self, headers: Headers) -> None:
        given = headers.getlist("host")
        name = _hostname(given[0]) if len(given) == 1 else ""
        if name not in self._hosts and "*" not in self._hosts:
            raise problems.Misdirected(
                f"this server is not {given[0][:100]!r}" if given else "a Host header is needed",
                remedy="add the name to `allowed_hosts`",
            )

    def _check_origin(self, headers: Headers) -> None:
        """A page of another site may not call, whatever it knows. Programs send no Origin; what they have to show is
        the token, which no browser adds by itself."""
        for given in headers.getlist("origin"):
            origin = _origin(given)
            same = origin in {f"http://{headers['host'].lower()}", f"https://{headers['host'].lower()}"}
            if not same and origin not in self._origins:
                raise Forbidden(
                    f"pages of the origin {given[:100]!r} may not call this server",
                    remedy="add the origin to `allowed_origins`",
                )


def _hostname(host: str) -> str:
    """Without the port, lower case, an IPv6 address without its brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0]


def _origin(origin: str) -> str:
    try:
        parts = urlsplit(origin.strip().lower())
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "null"
    return f"{parts.scheme}://{parts.hostname}{port}" if parts.scheme and parts.hostname else "null"


def _check_query(query: bytes) -> None:
    """A token in a URL ends up in logs, histories and Referer headers: refused even where it is right."""
    if not query:
        return
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name.lower() in _TOKEN_PARAMETERS:
            raise Unauthorized(
                f"a token does not belong into the URL ({name})",
                remedy="send the header `Authorization: Bearer <token>`; take this token for leaked",
            )


def is_streamed(scope: Scope) -> bool:
    """True for uploads: their route reads and bounds the body itself, piece by piece."""
    path: str = scope["path"]
    if path.startswith("/v1/stream/"):
        return True
    if scope["method"] == "POST":
        return path == "/v1/blobs"
    return scope["method"] == "PUT" and path.startswith("/v1/executions/") and "/files/" in path


def _guarded(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: list[Any] = message.setdefault("headers", [])
            there = {name.lower() for name, _ in headers}
            headers.extend(header for header in _SECURITY_HEADERS if header[0] not in there)
            if b"cache-control" not in there:
                headers.append((b"cache-control", b"private, no-store"))
        await send(message)

    return guarded


async def _refuse(error: CarrelError, scope: Scope, receive: Receive, send: Send) -> None:
    response = problems.answer(error)
    if scope["type"] == "websocket":
        # A refused handshake with a reason (ASGI's extension for it), rather than a socket that opens and closes.
        raw = [*response.raw_headers, *_SECURITY_HEADERS]
        await send({"type": "websocket.http.response.start", "status": response.status_code, "headers": raw})
        await send({"type": "websocket.http.response.body", "body": response.body})
        return
    response.headers["connection"] = "close"  # a body that was not read may still be on its way
    await response(scope, receive, _guarded(send))
