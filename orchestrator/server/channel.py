"""The socket of one execution's channel: events out, messages and wishes in. Knows no store.

Each sender is paired with a receiver: a handler that only sends never notices that the other side left (uvicorn hands
a disconnect to `receive` alone). Whichever ends first ends the other (`viewers.attend`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from orchestrator.errors import CarrelError, Forbidden, Gone, Unavailable
from orchestrator.events import Event
from orchestrator.execution import Execution
from orchestrator.server import problems
from orchestrator.server.parts import Reader, ThePart
from orchestrator.server.places import MOST_TAIL, place
from orchestrator.server.steering import cancel_want, interrupt_want, new_id, send
from orchestrator.server.viewers import Viewer, attend, check_room, counted, taken
from orchestrator.tokens import Scope, Token
from orchestrator.wire import channel as frames
from orchestrator.wire.invalid import parsed

logger = logging.getLogger(__name__)

router = APIRouter()

#: Events are put together into frames of about this size: a frame costs both ends more than an event.
_FRAME_BYTES: Final = 128 << 10
ENDED, NOT_ALLOWED, RESTARTING = 1000, 1008, 1012
_REASON_BYTES: Final = 123  # RFC 6455, 5.5


@router.websocket("/v1/executions/{id}/channel")
async def channel(
    socket: WebSocket,
    id: str,
    parts: ThePart,
    caller: Reader,
    after: Annotated[str | None, Query(max_length=64)] = None,
    tail: Annotated[int | None, Query(ge=0, le=MOST_TAIL)] = None,
) -> None:
    """Refused before the handshake with a problem, as over HTTP; a place that is gone is an error frame."""
    execution = await parts.find(id, caller)
    start = place(execution, after=after, tail=tail)
    check_room(parts)
    with counted(parts, "websocket"):
        await socket.accept()
        viewer = Viewer(parts, "websocket", parts.permit(caller), start)
        line = _Line(socket, viewer)
        try:
            why = await attend(
                viewer,
                showing=_show(line, execution.id),
                leaving=_hear(line, execution, caller),
            )
            if why == "stopping":
                await line.close(RESTARTING, str(viewer.cursor))
            elif why == "revoked":
                await line.close(NOT_ALLOWED, "the token does not hold any more")
        except WebSocketDisconnect:
            pass


class _Line:
    """One accepted socket; what it does not take in time ends it."""

    def __init__(self, socket: WebSocket, viewer: Viewer) -> None:
        self.viewer = viewer
        self.parts = viewer.parts
        self._socket = socket

    async def text(self, frame: str) -> None:
        if self._socket.application_state is not WebSocketState.CONNECTED:
            raise WebSocketDisconnect  # the other half has closed it
        await self.viewer.take(self._socket.send_text(frame))

    async def say(self, frame: frames.ServerFrame) -> None:
        await self.text(frame.model_dump_json())

    async def refuse(self, error: CarrelError, id: str = "") -> None:
        # Escaped to ASCII, as problems.answer: it may show what was sent.
        shape = {"type": "error", "id": id, "problem": problems.members_of(error)}
        await self.text(json.dumps(shape, default=str))

    async def close(self, code: int, reason: str = "") -> None:
        await taken(self.parts, "websocket", self._socket.close(code, reason[:_REASON_BYTES]))

    async def receive(self) -> str | bytes:
        """One frame. Raises WebSocketDisconnect."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        text: str | None = message.get("text")
        return text if text is not None else message["bytes"]


async def _show(line: _Line, execution_id: str) -> None:
    """Events out, until the history ends. A quiet socket is pinged by the server below."""
    parts, viewer = line.parts, line.viewer
    told = False
    pages = parts.history.follow(execution_id, viewer.cursor)
    try:
        async for page in pages:
            viewer.quiet = False
            if page.events:
                size = 0
                for piece in parts.encodings.page(execution_id, page, "websocket", _form):
                    await line.text(piece.decode())
                    size += len(piece)
                viewer.took(page, size)
            if page.closed:
                await line.say(frames.ClosedFrame(cursor=str(viewer.cursor)))
                await line.close(ENDED)
                return
            if not told and viewer.cursor.seq >= page.tail:
                told = True
                await line.say(frames.UpToDateFrame(cursor=str(viewer.cursor)))
            viewer.quiet = True
    except Gone as gone:
        await line.refuse(gone)
        await line.close(ENDED)
    except Unavailable as away:
        logger.warning("a channel ended early", extra={"execution": execution_id, "why": away.message})
        await line.close(RESTARTING, str(viewer.cursor))
    finally:
        await pages.aclose()  # type: ignore[attr-defined]


def _form(_execution_id: str, _generation: int, _events: Sequence[Event], encoded: Sequence[bytes]) -> Sequence[bytes]:
    pieces: list[bytes] = []
    batch: list[bytes] = []
    size = 0
    for line in encoded:
        if batch and size + len(line) > _FRAME_BYTES:
            pieces.append(_frame(batch))
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        pieces.append(_frame(batch))
    return pieces


def _frame(batch: Sequence[bytes]) -> bytes:
    if len(batch) == 1:
        return b'{"type":"event","event":' + batch[0] + b"}"
    return b'{"type":"events","events":[' + b",".join(batch) + b"]}"


async def _hear(line: _Line, execution: Execution, caller: Token) -> None:
    """Messages and wishes in, one after the other, each answered: a flood waits in the sender's own buffers."""
    while True:
        got = await line.receive()
        id = ""
        try:
            frame = parsed(frames.client_frames, got)
            id = frame.id or new_id()
            await _do(line, execution, caller, frame, id)
        except CarrelError as error:
            await line.refuse(error, id or _id_of(got))


async def _do(line: _Line, execution: Execution, caller: Token, frame: Any, id: str) -> None:
    parts = line.parts
    if isinstance(frame, frames.PingFrame):
        await line.say(frames.PongFrame(id=frame.id or ""))
        return
    if not caller.allows(Scope.WRITE):
        raise Forbidden("this token may watch, not steer", scope="write", remedy="use a token with the scope `write`")
    frame = frame.model_copy(update={"id": id})
    match frame:
        case frames.MessageFrame():
            receipt = await send(parts, execution, frame)
            await line.say(frames.ReceiptFrame(id=receipt.id, n=receipt.n, repeated=receipt.repeated, seq=receipt.seq))
        case frames.InterruptFrame():
            now = await parts.executions.get(execution.id)  # its attempt may have changed since the socket opened
            await parts.executions.want(execution.id, interrupt_want(now, frame))
            await line.say(frames.ReceiptFrame(id=id))
        case frames.CancelFrame():
            await parts.executions.want(execution.id, cancel_want(execution, frame))
            await line.say(frames.ReceiptFrame(id=id))


def _id_of(got: str | bytes) -> str:
    """The id of a frame that was refused, where it can be told."""
    try:
        shape = json.loads(got)
        id = shape["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return id[:128] if isinstance(id, str) else ""
