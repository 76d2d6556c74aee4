"""What the harness is given: environment, arguments, first input, files, and where its inbox begins. Pure.

The contract between a sandbox and any harness, version CARREL/1. Nothing of the worker's own environment gets in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from orchestrator.execution import Execution, OutputMode, StdinMode
from orchestrator.gateways import OUTLET_PORT
from orchestrator.harnesses import Harness, argv_of, fill, harness_of
from orchestrator.history import Message

INTERFACE: Final = "CARREL/1"
TASK_IN_ENVIRONMENT_BYTES: Final = 64 * 1024  # the kernel caps one string at 128 KiB
WORKSPACE: Final = "/workspace"
STATE_DIR: Final = "/state"
ARTIFACTS_DIR: Final = "/workspace/artifacts"
HOME: Final = "/state/home"
PATH: Final = "/state/home/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

NO_GATEWAY: Final[Mapping[str, str]] = MappingProxyType({})

#: Written by the harness's own user, inside, and by rename: the host opens nothing there, and a kill in the middle
#: leaves no half file. Then it becomes the harness; a program that is missing ends as in a shell, with 127 (126 if it
#: is none).
_LAY_FILES: Final = """
import json, os, sys
for path, text, mode in json.loads(sys.argv[1]):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".carrel-new", "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
        os.fchmod(file.fileno(), mode)
    os.rename(path + ".carrel-new", path)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as failure:
    print(f"{sys.argv[2]}: {failure.strerror}", file=sys.stderr)
    sys.exit(127 if isinstance(failure, FileNotFoundError) else 126)
"""


def environment_of(
    execution: Execution, *, resumed: bool, task_file: Path, gateway: Mapping[str, str] = NO_GATEWAY
) -> dict[str, str]:
    """The whole environment of the harness's process, the submitter's `env` included (it may override all but the
    contract's own). `gateway`: what `Gateways.environment` says; its CARREL_ names are the contract's."""
    spec = execution.spec
    contract = {
        **{name: value for name, value in gateway.items() if name.startswith("CARREL_")},
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
    if spec.limits.steps is not None:
        contract["LIMIT_STEPS"] = str(spec.limits.steps)
    if execution.budget.tokens is not None:
        contract["LIMIT_TOKENS"] = str(execution.budget.tokens)
    if execution.budget.micros is not None:
        contract["LIMIT_MICROS"] = str(execution.budget.micros)
    if execution.deadline_at is not None:
        contract["DEADLINE"] = _rfc3339(execution.deadline_at)
    usual = {"PATH": PATH, "HOME": HOME, "USER": "agent", "LANG": "C.UTF-8", "TERM": "dumb"}
    values = _placeholders(execution, gateway)
    harness = harness_of(spec)
    declared = {"MODEL_API": harness.api} if harness.api and gateway else {}
    declared |= {name: fill(text, values) for name, text in harness.env.items()}
    return {**usual, **gateway, **declared, **spec.env, **contract}


def start_of(
    execution: Execution,
    *,
    resumed: bool,
    inbox_base: int,
    task_file: Path,
    spool_limit_bytes: int,
    gateway: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], bytes]:
    """Fields and payload of init's `start`. `gateway` None: there is no way out, and init opens no outlet. Raises
    BadInput for a harness that is not declared, or a task it cannot take."""
    spec, harness = execution.spec, harness_of(execution.spec)
    harness.check(spec)
    task = spec.task.encode()
    fields: dict[str, Any] = {
        "argv": _argv(execution, resumed=resumed, gateway=gateway or NO_GATEWAY),
        "env": environment_of(execution, resumed=resumed, task_file=task_file, gateway=gateway or NO_GATEWAY),
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
    if gateway is not None:
        fields["outlet_port"] = OUTLET_PORT
    if first := first_input(execution, harness):
        fields["stdin_first"] = first
    return fields, task


def _argv(execution: Execution, *, resumed: bool, gateway: Mapping[str, str]) -> list[str]:
    """The command line, with what writes the harness's files before it. A submitter's own command is as it is."""
    spec, harness = execution.spec, harness_of(execution.spec)
    if harness.argv is None:
        return list(spec.command)
    values = _placeholders(execution, gateway)
    argv = [fill(text, values) for text in argv_of(spec, resumed=resumed)]
    if not harness.files:
        return argv
    files = [[file.path, fill(file.text, values), file.mode] for file in harness.files]
    return ["/usr/bin/python3", "-I", "-S", "-c", _LAY_FILES, json.dumps(files), *argv]


def _placeholders(execution: Execution, gateway: Mapping[str, str]) -> dict[str, str]:
    """The values of `harnesses.PLACEHOLDERS`; what there is no gateway for is empty."""
    return {
        "task": execution.spec.task,
        "model": gateway.get("MODEL", execution.spec.model),
        "gateway": gateway.get("CARREL_GATEWAY", ""),
        "token": gateway.get("CARREL_GATEWAY_TOKEN", ""),
        "state": STATE_DIR,
        "home": HOME,
        "workspace": WORKSPACE,
        "execution": execution.id,
    }


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
    it used, or, where it never says so, what was written to it; one that reads objects knows messages by their ids, so
    it gets again what it had not said it used. Any other begins anew, and so does its inbox.
    """
    if execution.attempt <= 1:
        return 0
    if cut is not None:
        return cut
    if not resumes:
        return 0
    return execution.consumed if stdin_of(execution) == "jsonl" else execution.consumed or execution.delivered


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said, ensure_ascii=False).encode() + b"\n"


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
