"""One command beside the harness: its result, or its output as it comes. Knows no engine: it speaks to init as a
viewer, so a worker's death is not noticed."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from orchestrator.errors import CarrelError, Conflict, LinkLost
from orchestrator.lifecycle import ExecutionState
from orchestrator.link import ExecExit, ExecOutput, ExecStarted, ViewerLink
from orchestrator.server import problems
from orchestrator.server.parts import Attacher, ThePart
from orchestrator.server.sse import MEDIA_TYPE, Streamed, accepts_sse, until_gone, written
from orchestrator.server.waking import awake
from orchestrator.wire.command import ExecBody, ExecResult

router = APIRouter(prefix="/v1/executions/{id}", tags=["exec"])

_STDIN_BYTES: Final = 64 << 10
_STREAM_DOC: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "What came of it; with `Accept: text/event-stream` the events started, output, exit (or error).",
        "content": {MEDIA_TYPE: {"schema": {"type": "string"}}},
    }
}


@router.post("/exec", response_model=ExecResult, responses=_STREAM_DOC, summary="Exec")
async def exec_command(id: str, body: ExecBody, request: Request, parts: ThePart, caller: Attacher) -> Response:
    """Runs as the harness's user in its sandbox, not through its history. Ends with the request, unless `detach`. One
    that sleeps is woken first, and its harness with it; 503 when it does not run within a minute."""
    execution = await awake(parts, await parts.find(id, caller))
    if execution.state is ExecutionState.PAUSED:
        # Its first process would freeze with the others, and the caller would wait for ever.
        raise Conflict(f"{execution.id} is paused", state=execution.state, remedy="resume it first")
    request.scope["carrel.held"] = True
    link = await ViewerLink.open(await parts.reach.open(execution))
    parts.metrics.execs.inc()
    happenings = _run(link, body)
    if accepts_sse(request.headers.get("accept", "")):
        # The first one is taken here: a refusal is a status, not a broken stream.
        first = await _first(happenings)
        return Streamed(_pieces(first, happenings), parts=parts, kind="exec")
    result = asyncio.ensure_future(_result(happenings, body))
    leaving = asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait((result, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            return Response(status_code=499)  # nobody is there to read it; the command ends with the line
        return Response(result.result().model_dump_json(), media_type="application/json")
    finally:
        result.cancel()
        leaving.cancel()
        await asyncio.gather(result, leaving, return_exceptions=True)


Happening = ExecStarted | ExecOutput | ExecExit


async def _run(link: ViewerLink, body: ExecBody) -> AsyncIterator[Happening]:
    """What happens, in order; input is fed meanwhile. Closes the line."""
    stdin = body.input()
    feeding: asyncio.Task[None] | None = None
    async with link:
        command = link.exec(
            body.command,
            env=body.env,
            cwd=body.cwd,
            stdin=stdin is not None,
            timeout_s=body.timeout_s,
            detach=body.detach,
        )
        try:
            async with aclosing(command):
                async for happening in command:
                    if stdin is not None and feeding is None and isinstance(happening, ExecStarted):
                        feeding = asyncio.create_task(_feed(link, stdin), name="exec-stdin")
                    yield happening
        finally:
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)


async def _feed(link: ViewerLink, stdin: bytes) -> None:
    for at in range(0, len(stdin), _STDIN_BYTES):
        await link.exec_stdin(stdin[at : at + _STDIN_BYTES])
    await link.exec_eof()


async def _first(happenings: AsyncIterator[Happening]) -> Happening:
    try:
        return await anext(happenings)
    except StopAsyncIteration:
        raise LinkLost("init closed the line before the command ran") from None


async def _result(happenings: AsyncIterator[Happening], body: ExecBody) -> ExecResult:
    kept = {"stdout": _Kept(body.max_output_bytes), "stderr": _Kept(body.max_output_bytes)}
    pid: int | None = None
    async with aclosing(happenings) as happening_by_happening:  # type: ignore[type-var]
        async for happening in happening_by_happening:
            match happening:
                case ExecStarted():
                    pid = happening.pid
                case ExecOutput():
                    kept[happening.stream].add(happening.data)
                case ExecExit():
                    return ExecResult(
                        exit_code=happening.exit_code,
                        signal=happening.signal,
                        timed_out=happening.timed_out,
                        error=happening.error,
                        pid=pid,
                        **kept["stdout"].members("stdout"),
                        **kept["stderr"].members("stderr"),
                    )
    if body.detach and pid is not None:
        return ExecResult(pid=pid)
    raise LinkLost("the line to init ended before the command did: how it ended is not known")


class _Kept:
    """The first so many bytes of one stream."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._data = bytearray()
        self._truncated = False

    def add(self, data: bytes) -> None:
        room = self._limit_bytes - len(self._data)
        self._truncated = self._truncated or len(data) > room
        self._data += data[:room]

    def members(self, stream: str) -> dict[str, Any]:
        return {**_text(stream, bytes(self._data), empty=None), f"{stream}_truncated": self._truncated}


def _text(name: str, data: bytes, *, empty: str | None = "") -> dict[str, Any]:
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        encoded = base64.b64encode(data).decode("ascii")
        return {f"{name}_b64": encoded, **({name: empty} if empty is None else {})}


async def _pieces(first: Happening, happenings: AsyncIterator[Happening]) -> AsyncIterator[bytes]:
    try:
        async with aclosing(happenings) as rest:  # type: ignore[type-var]
            yield _event(first)
            async for happening in rest:
                yield _event(happening)
    except CarrelError as error:
        yield written("error", _json(problems.members_of(error)))


def _event(happening: Happening) -> bytes:
    match happening:
        case ExecStarted():
            return written("started", _json({"pid": happening.pid}))
        case ExecOutput():
            return written("output", _json({"stream": happening.stream, **_text("data", happening.data)}))
        case ExecExit():
            shape = {"exit_code": happening.exit_code, "signal": happening.signal, "timed_out": happening.timed_out}
            return written("exit", _json({**shape, "error": happening.error}))


def _json(shape: Mapping[str, Any]) -> bytes:
    return json.dumps(shape, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace")
