"""What the harness is given: environment, arguments, first input, files, and where its inbox begins. Pure.

The contract between a sandbox and any harness, version CARREL/1. Nothing of the worker's own environment gets in.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from orchestrator.execution import Execution, OutputMode, StdinMode
from orchestrator.harnesses import Harness, argv_of, harness_of
from orchestrator.history import Message

INTERFACE: Final = "CARREL/1"
TASK_IN_ENVIRONMENT_BYTES: Final = 64 * 1024  # the kernel caps one string at 128 KiB
WORKSPACE: Final = "/workspace"
STATE_DIR: Final = "/state"
ARTIFACTS_DIR: Final = "/workspace/artifacts"
HOME: Final = "/state/home"
PATH: Final = "/state/home/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def environment_of(execution: Execution, *, resumed: bool, task_file: Path) -> dict[str, str]:
    """The whole environment of the harness's process, the submitter's `env` included (it may override all but the
    contract's own)."""
    spec = execution.spec
    contract = {
        "GATEWAY_INTERFACE": INTERFACE,
        "EXECUTION_ID": execution.id,
        "EXECUTION_NAME": spec.name or execution.id,
        "EXECUTION_ATTEMPT": str(execution.attempt),
        "EXECUTION_RESUMED": "1" if resumed else "0",
        # The moment of the submit: it is the same in every attempt, whatever became of the first.
        "EXECUTION_STARTED_AT": _rfc3339(execution.created_at),
        "TASK_FILE": str(task_file),
        "WORKSPACE": WORKSPACE,
        "STATE_DIR": STATE_DIR,
        "ARTIFACTS_DIR": ARTIFACTS_DIR,
    }
    if len(spec.task.encode()) <= TASK_IN_ENVIRONMENT_BYTES and "\0" not in spec.task:
        contract["TASK"] = spec.task
    if spec.limits.deadline_s is not None:
        contract["LIMIT_SECONDS"] = f"{spec.limits.deadline_s:g}"
    if execution.deadline_at is not None:
        contract["DEADLINE"] = _rfc3339(execution.deadline_at)
    usual = {"PATH": PATH, "HOME": HOME, "USER": "agent", "LANG": "C.UTF-8", "TERM": "dumb"}
    return {**usual, **harness_of(spec).env, **spec.env, **contract}


def start_of(
    execution: Execution, *, resumed: bool, inbox_base: int, task_file: Path, spool_limit_bytes: int
) -> tuple[dict[str, Any], bytes]:
    """Fields and payload of init's `start`."""
    spec, harness = execution.spec, harness_of(execution.spec)
    task = spec.task.encode()
    fields: dict[str, Any] = {
        "argv": list(argv_of(spec)),
        "env": environment_of(execution, resumed=resumed, task_file=task_file),
        "cwd": WORKSPACE,
        "stdin": stdin_of(execution),
        "output": output_of(execution),
        "spool_limit_bytes": spool_limit_bytes,
        "task_file": str(task_file),
        "inbox_base": inbox_base,
        "assignment": {
            "execution": execution.id,
            "name": spec.name,
            "tenant": spec.tenant,
            "attempt": execution.attempt,
        },
    }
    if first := first_input(execution, harness):
        fields["stdin_first"] = first
    return fields, task


def first_input(execution: Execution, harness: Harness) -> bytes:
    """The task as the harness reads it from stdin, before any message; nothing where it does not."""
    task, mode = execution.spec.task, stdin_of(execution)
    if not task or mode == "none" or not harness.reads_task:
        return b""
    if mode == "jsonl":
        return _line({"type": "task", "id": "task", "text": task})
    return task.encode() + b"\n"


def stdin_of(execution: Execution) -> StdinMode:
    """As submitted, else as the harness declares."""
    return execution.spec.stdin or harness_of(execution.spec).stdin


def output_of(execution: Execution) -> OutputMode:
    """As submitted, else as the harness declares."""
    return execution.spec.output or harness_of(execution.spec).output


def input_of(message: Message, mode: StdinMode) -> bytes:
    """A message as bytes for stdin. `text`: its line (a newline is added where there is none; mode `raw` adds
    nothing). `jsonl`: one object a line."""
    if mode == "jsonl":
        said = {"type": "user_message", "id": message.id, "text": message.body.decode(errors="replace")}
        return _line({**said, "mode": message.mode})
    if message.mode == "raw" or message.body.endswith(b"\n"):
        return message.body
    return message.body + b"\n"


def inbox_base(execution: Execution, *, resumes: bool, cut: int | None) -> int:
    """The number of the last message that is not delivered (again) in a new attempt.

    After a cut (`cut` = how far the harness had read): that one. A harness that goes on in its old files: what it said
    it used, or, where it never says so, what was written to it. Any other begins anew, and so does its inbox.
    """
    if execution.attempt <= 1:
        return 0
    if cut is not None:
        return cut
    return (execution.consumed or execution.delivered) if resumes else 0


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said, ensure_ascii=False).encode() + b"\n"


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
