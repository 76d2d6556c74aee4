"""What all wire nouns share: how strict a request is, how lenient an answer is read, how a moment is written. Knows no
noun."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, PlainSerializer

from orchestrator.wire import bounds


def rfc3339(moment: datetime) -> str:
    """Aware datetime → `2025-01-31T08:15:00.123Z` (RFC 3339, milliseconds, always UTC)."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds")[:-6] + "Z"


#: A moment on the wire: RFC 3339 with milliseconds and `Z`; read back as aware UTC.
Moment = Annotated[AwareDatetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]


#: Any text of a request: it can be written as UTF-8.
Text = Annotated[str, AfterValidator(bounds.check_text)]


class RequestModel(BaseModel):
    """A body somebody sends: no conversions, no unknown fields, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class AnswerModel(BaseModel):
    """A body we send. Read leniently, so that an older client understands a newer server."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())
