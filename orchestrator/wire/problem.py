"""A refusal as JSON (RFC 9457) and the error it stands for. Knows codes and classes; which HTTP status goes with which
is the server's business."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from orchestrator import errors

TYPE_PREFIX: Final = "urn:carrel:problem:"
_ENVELOPE: Final = frozenset({"type", "title", "status", "detail", "code", "instance"})


class FieldProblem(BaseModel):
    """One of several wrong fields."""

    model_config = ConfigDict(extra="ignore")

    field: str
    message: str
    limit: str = ""
    remedy: str = ""


class Problem(BaseModel):
    """`code` is stable; the other members are the error's own data: field, limit, remedy, retry_after_s, earliest…"""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    limit: str | int | None = None
    remedy: str | None = None
    retry_after_s: float | None = None
    errors: list[FieldProblem] | None = Field(default=None)


def problem_of(error: errors.CarrelError, *, status: int, title: str) -> dict[str, Any]:
    """The members, ready for JSON. The error's data never overwrites the envelope's."""
    data = {key: value for key, value in error.data.items() if key not in _ENVELOPE and value not in (None, "")}
    return {
        "type": TYPE_PREFIX + error.code,
        "title": title,
        "status": status,
        "detail": error.message,
        "code": error.code,
        **data,
    }


def error_of(problem: dict[str, Any]) -> errors.CarrelError:
    """The error a problem stands for, of the same class and with the same data; CarrelError for a code we do not
    know."""
    detail = str(problem.get("detail") or problem.get("title") or "refused")
    data = {key: value for key, value in problem.items() if key not in _ENVELOPE and key.isidentifier()}
    kind = _CLASSES.get(str(problem.get("code", "")), errors.CarrelError)
    if issubclass(kind, errors.BadInput):
        data = {"field": "", **data}
    if kind is errors.Resend:
        return errors.Resend(detail, src=int(data.get("src", 0)))
    return kind(detail, **data)


def _tree(root: type[errors.CarrelError]) -> dict[str, type[errors.CarrelError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            found.update(_tree(child))
    return found


_CLASSES: Final = _tree(errors.CarrelError)
