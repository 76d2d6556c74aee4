"""What every request is put together of: its path, its body, its preference, its key. Knows no call."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

V1 = "/v1"
#: The most a server holds a request for us.
HOLD_S = 60.0
_OF_LIMITS = ("steps", "budget_usd", "budget_tokens", "on_budget")


def new_id() -> str:
    """An id nobody else has: 128 random bits in hex."""
    return secrets.token_hex(16)


def at(execution: str, rest: str = "") -> str:
    return f"{V1}/executions/{quote(execution, safe='')}{rest}"


def body_of(body: Mapping[str, Any]) -> tuple[Mapping[str, str], bytes]:
    return {"content-type": "application/json"}, json.dumps(body, ensure_ascii=False).encode()


def prefer(hold_s: float) -> dict[str, str]:
    return {"prefer": f"wait={hold_s:g}"} if hold_s else {}


def only(**fields: Any) -> dict[str, Any]:
    """Without what was not given."""
    return {name: value for name, value in fields.items() if value is not None}


def spelled(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The shorter ways to say it, as the API has them: `egress` as a list of names, and what belongs to `limits`
    without them. What is not said in the short way stays as it is."""
    body = dict(spec)
    if limits := {name: body.pop(name) for name in _OF_LIMITS if name in body}:
        body["limits"] = {**(body.get("limits") or {}), **limits}
    if isinstance(body.get("egress"), list | tuple):
        body["egress"] = {"allow": list(body["egress"])}
    return body
