"""What a person says to a running execution: messages and wishes. Knows no inbox and no HTTP."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from orchestrator.wire import bounds
from orchestrator.wire.shape import AnswerModel, RequestModel, Text

Id = Annotated[Text, AfterValidator(bounds.check_id)]


class MessageBody(RequestModel):
    """`text` reaches the harness as its declaration says (a line, or a JSON object); `data_b64` as exactly these bytes.
    `id` makes a repeat harmless; without one the server makes one."""

    id: Id | None = None
    text: Text | None = None
    data_b64: Annotated[Text, AfterValidator(bounds.check_base64)] | None = None
    mode: Literal["steer", "follow_up"] = "steer"

    @model_validator(mode="after")
    def _one_content(self) -> MessageBody:
        if (self.text is None) == (self.data_b64 is None):
            bounds.refuse("a message needs one content", limit="text or data_b64", remedy="send one of them")
        if len(self.content()) > bounds.MESSAGE_BYTES:
            bounds.refuse(
                f"text: the message has {len(self.content())} bytes",
                limit=f"{bounds.MESSAGE_BYTES} bytes",
                remedy="upload a file and name it in the message",
            )
        return self

    def content(self) -> bytes:
        if self.text is not None:
            return self.text.encode()
        return bounds.decoded(self.data_b64 or "")


class Receipt(AnswerModel):
    """The message is durable. `n`: its number in the inbox; `seq`: of its `message.accepted` event (0 where this id had
    been sent before); `repeated`: nothing was written now."""

    id: str
    n: int
    repeated: bool
    seq: int = 0


class WishBody(RequestModel):
    """A wish without parameters. The same `id` again changes nothing."""

    id: Id | None = None


class CancelBody(WishBody):
    """SIGTERM, then after `grace_s` SIGKILL; null = the execution's own grace, 0 = at once."""

    grace_s: float | None = Field(default=None, ge=0, le=3600)
    reason: Annotated[Text, AfterValidator(bounds.check_printable)] = Field(default="", max_length=bounds.REASON_CHARS)


class ResizeBody(WishBody):
    """Other resources for the running sandbox; what is absent stays as it is."""

    cpus: float | None = Field(default=None, ge=0.01, le=1024)
    memory_bytes: int | None = Field(default=None, ge=32 * bounds.MIB, le=64 * 1024 * bounds.GIB)
    pids: int | None = Field(default=None, ge=16, le=4_194_304)
    disk_bytes: int | None = Field(default=None, ge=0, le=64 * 1024 * bounds.GIB)

    @model_validator(mode="after")
    def _something(self) -> ResizeBody:
        if all(asked is None for asked in (self.cpus, self.memory_bytes, self.pids, self.disk_bytes)):
            limit = "at least one of cpus, memory_bytes, pids, disk_bytes"
            bounds.refuse("nothing to change", limit=limit, remedy="send one")
        return self
