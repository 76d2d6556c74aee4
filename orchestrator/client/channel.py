"""One socket for both ways: events out, messages in. Its core: what to send, what a frame means, what to send again
after a broken connection. Knows no network.

A message is kept until its receipt is there and is sent again, with the same id, on the next connection: that delivers
it once. Events obey the same rules as in following.py.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.client import answers, requests
from orchestrator.client.following import Batch, Place
from orchestrator.client.spelling import new_id
from orchestrator.errors import CarrelError
from orchestrator.events import Event
from orchestrator.wire.steering import Receipt


@dataclass(frozen=True, slots=True)
class Refused:
    """A frame of ours was refused: `id` names it ("" = the connection itself)."""

    id: str
    error: CarrelError


Item = Batch | Receipt | Refused


class ChannelCore:
    """The state of one channel over all its connections."""

    def __init__(self, execution: str, *, after: str = "") -> None:
        self.execution = execution
        self.place = Place(execution, after, None)
        self.closed = False
        self._unreceipted: dict[str, str] = {}

    def path(self) -> str:
        """Where the next connection goes."""
        return requests.channel_path(self.execution, after=self.place.cursor)

    def resend(self) -> list[str]:
        """Frames a new connection begins with: what has no receipt yet, in the order it was first sent."""
        return list(self._unreceipted.values())

    def message(self, content: str | bytes, *, id: str = "", mode: str = "steer") -> tuple[str, str]:
        """(id, frame) of a message."""
        body = {"text": content} if isinstance(content, str) else {"data_b64": base64.b64encode(content).decode()}
        return self._frame("message", id, {**body, "mode": mode})

    def interrupt(self, *, id: str = "") -> tuple[str, str]:
        """(id, frame) of an interrupt."""
        return self._frame("interrupt", id, {})

    def cancel(self, *, grace_s: float | None = None, id: str = "") -> tuple[str, str]:
        """(id, frame) of a cancel."""
        return self._frame("cancel", id, {} if grace_s is None else {"grace_s": grace_s})

    def _frame(self, type: str, id: str, fields: Mapping[str, Any]) -> tuple[str, str]:
        id = id or new_id()
        frame = json.dumps({"type": type, "id": id, **fields}, ensure_ascii=False)
        self._unreceipted[id] = frame
        return id, frame

    def receive(self, frame: str | bytes) -> list[Item]:
        """What one frame of the server means. Raises Gone; following.Again when the connection is of no more use."""
        try:
            shape = json.loads(frame)
            kind = shape["type"]
        except (ValueError, KeyError, TypeError):
            raise answers.not_ours(repr(frame)[:100]) from None
        match kind:
            case "event":
                return self._batch([answers.event_of(shape["event"])])
            case "events":
                return self._batch([answers.event_of(one) for one in shape["events"]])
            case "up_to_date":
                self.place.move(shape["cursor"])
                return [Batch((), self.place.cursor, up_to_date=True)]
            case "closed":
                self.closed = True
                self.place.move(shape["cursor"])
                return [Batch((), self.place.cursor, up_to_date=True, closed=True)]
            case "receipt":
                self._unreceipted.pop(shape["id"], None)
                return [answers.receipt_of(shape)]
            case "error":
                self._unreceipted.pop(shape.get("id", ""), None)
                error = answers.error(shape.get("problem"))
                if not shape.get("id"):
                    raise error
                return [Refused(shape["id"], error)]
            case _:
                return []  # of a later version

    def _batch(self, events: list[Event]) -> list[Item]:
        taken = self.place.take(events)
        return [Batch(taken, self.place.cursor)] if taken else []
