"""Whether another model call may be made: steps, tokens, money, time. Looked at before each; knows no loop.

The platform's own count is asked where it is there: it is the true one, over all attempts and all programs of the
execution, and a budget that was raised is in it.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from agent_harness.config import Config
from agent_harness.conversation import Conversation

ANSWER_S = 20.0


@dataclass(frozen=True)
class Reached:
    """`stop_reason`: max_steps, max_tokens, budget, deadline."""

    stop_reason: str
    text: str


def reached(config: Config, conversation: Conversation, environ: Mapping[str, str]) -> Reached | None:
    """None: go on."""
    if config.limit_steps is not None and conversation.steps >= config.limit_steps:
        return Reached("max_steps", f"Stopped: {conversation.steps} of {config.limit_steps} steps are used.")
    if config.ends_at is not None and time.time() >= config.ends_at:
        return Reached("deadline", "Stopped: the time for this task is over.")
    tokens, limit_tokens = conversation.tokens, config.limit_tokens
    if config.limit_micros is not None or config.limit_tokens is not None:
        spend = spent(environ)
        micros, limit_micros = spend.get("micros", 0), spend.get("limit_micros", config.limit_micros)
        if spend:
            tokens = (spend.get("input_tokens") or 0) + (spend.get("output_tokens") or 0)
            limit_tokens = spend.get("limit_tokens", limit_tokens)
        if limit_micros is not None and micros is not None and micros >= limit_micros:
            return Reached("budget", f"Stopped: ${micros / 1e6:.6f} of ${limit_micros / 1e6:.6f} are spent.")
    if limit_tokens is not None and tokens >= limit_tokens:
        return Reached("max_tokens", f"Stopped: {tokens} of {limit_tokens} tokens are used.")
    return None


def spent(environ: Mapping[str, str]) -> dict[str, int | None]:
    """The platform's figures; empty without a gateway, or when it does not answer: it refuses calls by itself."""
    parts = urlsplit(environ.get("CARREL_GATEWAY", ""))
    if not parts.hostname:
        return {}
    line = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=ANSWER_S)
    try:
        token = environ.get("CARREL_GATEWAY_TOKEN", "")
        headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
        line.request("GET", "/carrel/v1/spend", headers=headers)
        answer = line.getresponse()
        said = json.loads(answer.read(65536))
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        line.close()
    if answer.status != 200 or not isinstance(said, dict):
        return {}
    return {name: value for name, value in said.items() if value is None or isinstance(value, int)}
