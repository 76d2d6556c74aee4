"""One command beside the harness: what to run, what came of it. Knows no sandbox."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from orchestrator.wire import bounds
from orchestrator.wire.shape import AnswerModel, RequestModel, Text

DEFAULT_OUTPUT_BYTES = 1 * bounds.MIB
MAX_OUTPUT_BYTES = 64 * bounds.MIB
MAX_TIMEOUT_S = 86_400


def check_cwd(cwd: str) -> str:
    """Lexical only: an absolute path without tricks through /proc (attack 11). It is resolved inside the sandbox."""
    parts = [part for part in cwd.split("/") if part not in {"", "."}]
    tricky = ".." in parts or parts[:1] in (["proc"], ["dev"], ["sys"])
    if not cwd.startswith("/") or "\0" in cwd or tricky or len(cwd) > 4096:
        bounds.refuse(
            f"cwd {cwd[:80]!r} is not allowed",
            limit="an absolute path without `..`, not under /proc, /dev or /sys",
            remedy="for example /workspace",
        )
    return cwd


class ExecBody(RequestModel):
    """`timeout_s`: whole seconds, then SIGKILL. `max_output_bytes`: of each stream, what comes after is counted as
    truncated (streamed answers have no such bound)."""

    command: Annotated[list[Text], AfterValidator(bounds.check_command)] = Field(min_length=1)
    env: Annotated[dict[Text, Text], AfterValidator(bounds.check_env)] = Field(default_factory=dict)
    cwd: Annotated[Text, AfterValidator(check_cwd)] = "/workspace"
    stdin: Text | None = None
    stdin_b64: Annotated[Text, AfterValidator(bounds.check_base64)] | None = None
    timeout_s: int | None = Field(default=None, ge=1, le=MAX_TIMEOUT_S)
    detach: bool = False
    max_output_bytes: int = Field(default=DEFAULT_OUTPUT_BYTES, ge=0, le=MAX_OUTPUT_BYTES)

    @model_validator(mode="after")
    def _one_stdin(self) -> ExecBody:
        if self.stdin is not None and self.stdin_b64 is not None:
            bounds.refuse("stdin is there twice", limit="stdin or stdin_b64", remedy="send one of them")
        return self

    def input(self) -> bytes | None:
        """The bytes for its stdin; None = /dev/null."""
        if self.stdin is not None:
            return self.stdin.encode()
        return bounds.decoded(self.stdin_b64) if self.stdin_b64 is not None else None


class ExecResult(AnswerModel):
    """`stdout`, `stderr` as text, or as `*_b64` (and null here) when they are not UTF-8. With `detach` only `pid` is
    there."""

    exit_code: int | None = None
    signal: int | None = None
    stdout: str | None = ""
    stderr: str | None = ""
    stdout_b64: str | None = None
    stderr_b64: str | None = None
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    timed_out: bool = False
    error: str = Field(
        default="", description="why it could not be started, with exit code 126 or 127 as a shell has it"
    )
    pid: int | None = None
