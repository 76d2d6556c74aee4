"""What travels over the socket of one execution's channel. Knows no socket.

server → client   event · events · up_to_date · closed · receipt · error · pong
client → server   message · interrupt · cancel · ping
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from orchestrator.wire.event import EventAnswer
from orchestrator.wire.shape import AnswerModel
from orchestrator.wire.steering import CancelBody, MessageBody, WishBody


class MessageFrame(MessageBody):
    type: Literal["message"]


class InterruptFrame(WishBody):
    type: Literal["interrupt"]


class CancelFrame(CancelBody):
    type: Literal["cancel"]


class PingFrame(WishBody):
    type: Literal["ping"]


ClientFrame = Annotated[MessageFrame | InterruptFrame | CancelFrame | PingFrame, Field(discriminator="type")]
client_frames: TypeAdapter[MessageFrame | InterruptFrame | CancelFrame | PingFrame] = TypeAdapter(ClientFrame)


class EventFrame(AnswerModel):
    type: Literal["event"] = "event"
    event: EventAnswer


class EventsFrame(AnswerModel):
    type: Literal["events"] = "events"
    events: list[EventAnswer]


class UpToDateFrame(AnswerModel):
    type: Literal["up_to_date"] = "up_to_date"
    cursor: str


class ClosedFrame(AnswerModel):
    type: Literal["closed"] = "closed"
    cursor: str


class ReceiptFrame(AnswerModel):
    """Answers `message` (with its number) and the wishes (n = 0: their receipt is an event)."""

    type: Literal["receipt"] = "receipt"
    id: str
    n: int = 0
    repeated: bool = False
    seq: int = 0


class ErrorFrame(AnswerModel):
    """`id`: of the frame it answers, where it had one. `problem`: as over HTTP."""

    type: Literal["error"] = "error"
    id: str = ""
    problem: dict[str, Any]


class PongFrame(AnswerModel):
    type: Literal["pong"] = "pong"
    id: str = ""


ServerFrame = Annotated[
    EventFrame | EventsFrame | UpToDateFrame | ClosedFrame | ReceiptFrame | ErrorFrame | PongFrame,
    Field(discriminator="type"),
]
