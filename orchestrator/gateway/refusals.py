"""What the gateway says no with, in the words of whoever is asked: Anthropic's error, OpenAI's, or ours. Pure.

A program that speaks a provider's protocol shall show a person our reason without knowing us, so `message` says it all;
what a program needs (figures, field, limit, remedy) stands beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from orchestrator.errors import CarrelError


class Tongue(StrEnum):
    """Whose error shape."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"
    CARREL = "carrel"


class Refused(Exception):
    """The request gets this instead of an answer. `code` is stable. `told`: the refusal belongs into the history."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        /,
        *,
        retry_after_s: int | None = None,
        told: bool = False,
        **data: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.told = told
        self.data = data

    @classmethod
    def of(cls, error: CarrelError, status: int, *, code: str = "", told: bool = False) -> Refused:
        """One of our errors, with what it carries."""
        data = {name: value for name, value in error.data.items() if value not in ("", None)}
        limit = f" (there is {data['limit']})" if "limit" in data else ""
        remedy = f"; {data['remedy']}" if "remedy" in data else ""
        return cls(status, code or error.code, error.message + limit + remedy, told=told, **data)

    def headers(self) -> list[tuple[str, str]]:
        shown = [("content-type", "application/json")]
        if self.retry_after_s is not None:
            shown.append(("retry-after", str(self.retry_after_s)))
        return shown

    def body(self, tongue: Tongue) -> bytes:
        """The JSON of it."""
        match tongue:
            case Tongue.ANTHROPIC:
                kind = self.code if self.status == 402 else _ANTHROPIC.get(self.status, _by_class(self.status))
                error = {"type": kind, "message": self.message, "code": self.code, **self.data}
                shape: Mapping[str, Any] = {"type": "error", "error": error}
            case Tongue.OPENAI:
                kind = self.code if self.status == 402 else _OPENAI.get(self.status, "invalid_request_error")
                param = self.data.get("field")
                error = {"message": self.message, "type": kind, "param": param, "code": self.code, **self.data}
                shape = {"error": error}
            case Tongue.CARREL:
                shape = {"error": {"code": self.code, "message": self.message, **self.data}}
        return json.dumps(shape).encode()


def _by_class(status: int) -> str:
    return "api_error" if status >= 500 else "invalid_request_error"


_ANTHROPIC: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_OPENAI: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}
