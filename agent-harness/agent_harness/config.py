"""What the contract's environment says, read once. Knows nothing of what is done with it.

Everything here is the same in every attempt of an execution (but `resumed`), so a request to the model that is built
from it and from the journal has the same bytes in every attempt, and the gateway knows it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent_harness.providers import chat, messages, responses
from agent_harness.providers.shape import Provider

PROVIDERS: Mapping[str, Provider] = {
    "anthropic-messages": messages.MESSAGES,
    "openai-chat": chat.CHAT,
    "openai-responses": responses.RESPONSES,
}


class BadConfiguration(Exception):
    """Cannot begin, and trying again would not help: exit code 78. Names the variable, its limit and the remedy."""


@dataclass(frozen=True)
class Config:
    """`None` = no limit. `base_url` without the provider's own path. `task` "" = the first message is the task."""

    execution: str
    task: str
    resumed: bool
    workspace: Path
    state: Path
    artifacts: Path
    model: str
    provider: Provider
    base_url: str
    key: str
    context_tokens: int | None
    output_tokens: int | None
    thinking_tokens: int | None
    started_at: str
    limit_steps: int | None
    limit_tokens: int | None
    limit_micros: int | None
    ends_at: float | None  # Unix seconds
    retry_s: float  # how long a model call is tried again
    wait_s: float  # how long a message is waited for before the exit that hibernates


def read(environ: Mapping[str, str]) -> Config:
    """Raises BadConfiguration."""
    model = environ.get("MODEL", "")
    if not model:
        raise BadConfiguration("MODEL is empty: name the model to use, e.g. with `carrel run --model NAME`")
    api = environ.get("MODEL_API", "") or "anthropic-messages"
    if api not in PROVIDERS:
        raise BadConfiguration(f"MODEL_API is {api!r}: it must be one of {', '.join(PROVIDERS)}")
    provider = PROVIDERS[api]
    state = Path(environ.get("STATE_DIR") or ".carrel-state").absolute()
    workspace = Path(environ.get("WORKSPACE") or ".").absolute()
    started_at = environ.get("EXECUTION_STARTED_AT", "")
    return Config(
        execution=environ.get("EXECUTION_ID", "") or "local",
        task=_task(environ),
        resumed=environ.get("EXECUTION_RESUMED") == "1",
        workspace=workspace,
        state=state,
        artifacts=Path(environ.get("ARTIFACTS_DIR") or workspace / "artifacts"),
        model=model,
        provider=provider,
        base_url=(environ.get(provider.url_variable) or provider.default_url).rstrip("/"),
        key=environ.get(provider.key_variable, ""),
        context_tokens=_whole(environ, "CONTEXT_TOKENS"),
        output_tokens=_whole(environ, "MAX_OUTPUT_TOKENS"),
        thinking_tokens=_whole(environ, "THINKING_TOKENS"),
        started_at=started_at,
        limit_steps=_whole(environ, "LIMIT_STEPS"),
        limit_tokens=_whole(environ, "LIMIT_TOKENS"),
        limit_micros=_whole(environ, "LIMIT_MICROS"),
        ends_at=_ends_at(environ, started_at),
        retry_s=_seconds(environ, "MODEL_RETRY_S", 600.0),
        wait_s=_seconds(environ, "MESSAGE_WAIT_S", 60.0),
    )


def _task(environ: Mapping[str, str]) -> str:
    file = environ.get("TASK_FILE", "")
    if file:
        try:
            return Path(file).read_bytes().decode(errors="replace").strip()
        except OSError as problem:
            if "TASK" not in environ:
                raise BadConfiguration(f"TASK_FILE {file!r} cannot be read: {problem.strerror}") from None
    return environ.get("TASK", "").strip()


def _whole(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise BadConfiguration(f"{name} is {text!r}: it must be a whole number from 1; unset it for no limit")
    return int(text)


def _seconds(environ: Mapping[str, str], name: str, default_s: float) -> float:
    text = environ.get(name, "")
    if not text:
        return default_s
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise BadConfiguration(f"{name} is {text!r}: it must be seconds from 0; unset it for {default_s:g}")
    return value


def _ends_at(environ: Mapping[str, str], started_at: str) -> float | None:
    """DEADLINE, or LIMIT_SECONDS after the first attempt's start."""
    if deadline := environ.get("DEADLINE", ""):
        return _moment(deadline, "DEADLINE")
    limit_s = _seconds(environ, "LIMIT_SECONDS", 0.0)
    return _moment(started_at, "EXECUTION_STARTED_AT") + limit_s if limit_s and started_at else None


def _moment(text: str, name: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise BadConfiguration(f"{name} is {text!r}: it must be a moment of RFC 3339, e.g. 2026-01-31T12:00:00Z")
    return moment.timestamp()
