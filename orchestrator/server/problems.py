"""Errors as RFC 9457 problems: the only file that knows both the error tree and HTTP's statuses."""

from __future__ import annotations

import json
import logging
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketState

from orchestrator import errors
from orchestrator.wire.bounds import BODY_BYTES
from orchestrator.wire.invalid import bad_input
from orchestrator.wire.problem import problem_of

logger = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"

#: By class; a class that is not here has its parent's.
STATUS: Final[dict[type[errors.CarrelError], int]] = {
    errors.CarrelError: 500,
    errors.BadInput: 422,
    errors.TooLarge: 413,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Changed: 412,
    errors.TooMany: 429,
    errors.Gone: 410,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.Fenced: 409,
    errors.Closed: 409,
    errors.Resend: 409,
    errors.Unavailable: 503,
    errors.ImageMissing: 422,
    errors.Infeasible: 422,
    errors.DiskFull: 507,
    errors.LinkError: 502,
}
_RETRY_AFTER_S: Final = 1.0


class Misdirected(errors.Forbidden):
    """The Host header names a server we are not: a rebound name, or a setting that lacks it."""

    code = "misdirected"


class Unsatisfiable(errors.BadInput):
    """A range that begins behind the end. `data`: size (bytes there are)."""

    code = "range_not_satisfiable"


STATUS.update({Misdirected: 421, Unsatisfiable: 416})


def status_of(error: errors.CarrelError) -> int:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def members_of(error: errors.CarrelError, *, status: int | None = None) -> dict[str, Any]:
    """The problem's members; those of a socket's error frame are the same."""
    status = status or status_of(error)
    members = problem_of(error, status=status, title=HTTPStatus(status).phrase)
    if status == 503:
        members.setdefault("retry_after_s", _RETRY_AFTER_S)
    return members


def answer(error: errors.CarrelError, *, status: int | None = None) -> Response:
    """The response that says so. `status`: of a protocol that has its own for it."""
    members = members_of(error, status=status)
    headers = {}
    if members["status"] == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="carrel"'
    if (retry_after_s := members.get("retry_after_s")) is not None:
        headers["Retry-After"] = str(max(1, round(float(retry_after_s))))
    if members["status"] == 416:
        headers["Content-Range"] = f"bytes */{error.data.get('size', '*')}"
    # Escaped to ASCII: what was sent to us may hold lone surrogates, and is shown again here.
    body = json.dumps(members, default=str).encode()
    return Response(body, status_code=members["status"], headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of this app a problem."""
    app.add_exception_handler(errors.CarrelError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(WebSocketRequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _unforeseen)


async def _ours(caller: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, errors.CarrelError)
    if status_of(error) >= 500:
        logger.warning("a request failed", extra={"path": caller.url.path, "code": error.code, "why": error.message})
    return await _told(caller, answer(error))


async def _invalid(caller: HTTPConnection, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError | WebSocketRequestValidationError)
    return await _told(caller, answer(bad_input(error.errors())))


async def _told(caller: HTTPConnection, response: Response) -> Response:
    """The framework sends a handler's response over HTTP only; a socket's handshake is refused here."""
    if isinstance(caller, WebSocket) and caller.application_state is WebSocketState.CONNECTING:
        if caller.client_state is WebSocketState.CONNECTING:
            await caller.receive()  # its connect
        await caller.send_denial_response(response)
    return response


def body_too_large() -> errors.TooLarge:
    return errors.TooLarge(
        "the body is too large",
        field="body",
        limit=f"{BODY_BYTES} bytes",
        remedy="upload large content to /v1/blobs and name it by its sha256",
    )


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 413:
            return answer(body_too_large())
        case 404:
            return answer(errors.NotFound("there is no such page", kind="page", id=request.url.path[:200]))
        case 400:
            said = errors.BadInput(
                "the body cannot be read", field="body", limit="JSON", remedy="send one JSON object, UTF-8"
            )
            return answer(said)
    members = {
        "type": "about:blank",
        "title": HTTPStatus(error.status_code).phrase,
        "status": error.status_code,
        "detail": str(error.detail),
        "code": HTTPStatus(error.status_code).name.lower(),
    }
    return Response(json.dumps(members), error.status_code, headers=dict(error.headers or {}), media_type=MEDIA_TYPE)


async def _unforeseen(_request: Request, _error: Exception) -> Response:
    # The server logs the traceback itself; its text is not for the caller.
    return answer(errors.CarrelError("this is a bug in the server; its log has the details"))
