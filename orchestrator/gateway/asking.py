"""A model request as the gateway understands it: what is asked, of which model, what of it makes it the same question.
Pure.

What goes on to the provider is written anew from what was parsed: a body that two parsers could read in two ways (a
name given twice) reaches the provider as the gateway read it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from orchestrator.gateway.refusals import Refused
from orchestrator.models import ModelApi

KEY_BYTES: Final = 256  # of an Idempotency-Key
MODEL_BYTES: Final = 256
#: How the answer is carried and who asks: not what is asked.
NOT_THE_QUESTION: Final = frozenset(
    {"stream", "stream_options", "metadata", "client_metadata", "user", "safety_identifier", "prompt_cache_key"}
)
#: Keys that clients' libraries draw anew for each request: they name one sending, not one question.
_DRAWN: Final = "stainless-"


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """`sent`: what the provider gets. `wants_usage`: the client itself asked for chat's chunk of usage. `key`: the
    Idempotency-Key, "" = none that outlives one sending."""

    api: ModelApi
    path: str
    model: str
    stream: bool
    wants_usage: bool
    body: dict[str, Any]
    sent: bytes
    digest: str
    key: str


def model_request(api: ModelApi, path: str, raw: bytes, *, key: str = "") -> ModelRequest:
    """Raises Refused (400)."""
    body = parsed(raw)
    model = model_of(body)
    stream = body.get("stream", False)
    if stream is None:
        stream = False
    if not isinstance(stream, bool):
        raise Refused(400, "invalid", "stream is true or false", field="stream", limit="true | false")
    if body.get("background"):
        raise Refused(
            400,
            "invalid",
            "background answers are not carried: their end would be seen by nobody; ask without background",
            field="background",
            limit="false",
            remedy="leave it out; stream, for long answers",
        )
    _check_key(key)
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise Refused(400, "invalid", "stream_options is an object", field="stream_options", limit="object")
    up = body
    if api is ModelApi.CHAT and stream:
        up = {**body, "stream_options": {**options, "include_usage": True}}
    return ModelRequest(
        api=api,
        path=path,
        model=model,
        stream=stream,
        wants_usage=bool(options.get("include_usage")),
        body=body,
        sent=written(up),
        digest=digest_of(path, body),
        key="" if key.startswith(_DRAWN) else key,
    )


def parsed(raw: bytes) -> dict[str, Any]:
    """The body as an object. Raises Refused (400)."""
    try:
        body = json.loads(raw)
    except RecursionError:
        raise Refused(400, "invalid", "the body is nested too deeply", field="body", limit="JSON") from None
    except ValueError as error:
        raise Refused(400, "invalid", f"the body is not JSON: {error}", field="body", limit="JSON") from error
    if not isinstance(body, dict):
        raise Refused(400, "invalid", "the body is not a JSON object", field="body", limit="a JSON object")
    return body


def model_of(body: dict[str, Any]) -> str:
    """Raises Refused (400)."""
    model = body.get("model")
    if not isinstance(model, str) or not model or len(model.encode("utf-8", "replace")) > MODEL_BYTES:
        raise Refused(
            400,
            "invalid",
            f"model is a name of 1 to {MODEL_BYTES} bytes",
            field="model",
            limit=f"1..{MODEL_BYTES} bytes",
        )
    return model


def digest_of(path: str, body: dict[str, Any]) -> str:
    """sha256 of the path and the canonical body, in hex: equal for the same question, whatever its spacing, the order
    of its names, or whether it is to be streamed."""
    question = {name: value for name, value in body.items() if name not in NOT_THE_QUESTION}
    return hashlib.sha256(path.encode() + b"\n" + written(question, sort=True)).hexdigest()


def _check_key(key: str) -> None:
    if len(key) > KEY_BYTES or not (key.isascii() and (key.isprintable() or not key)):
        raise Refused(
            400,
            "invalid",
            f"Idempotency-Key: at most {KEY_BYTES} printable ASCII characters",
            field="Idempotency-Key",
            limit=f"{KEY_BYTES} printable ASCII characters",
        )


def written(value: Any, *, sort: bool = False) -> bytes:
    """JSON without spaces. Raises Refused (400)."""
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=sort, separators=(",", ":"))
    except RecursionError:
        raise Refused(400, "invalid", "the body is nested too deeply", field="body", limit="JSON") from None
    # Half a surrogate pair, which JSON can write and UTF-8 cannot, stays as it was written: \ud83d.
    return text.encode("utf-8", "backslashreplace")
