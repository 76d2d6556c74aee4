"""What a harness is given, and where its inbox begins: the contract CARREL/1, sentence by sentence."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine.environment import environment_of, inbox_base, input_of, start_of
from orchestrator.execution import Budget, Execution, Limits, Spec
from orchestrator.harnesses import Harness, HarnessFile
from orchestrator.history import Message
from orchestrator.lifecycle import ExecutionState

CREATED = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
TASK_FILE = Path("/run/task")


def execution(spec: Spec | None = None, **record: Any) -> Execution:
    given: dict[str, Any] = {"attempt": 1, **record}
    return Execution("exe_x", spec or Spec(task="t"), ExecutionState.STARTING, CREATED, **given)


def started(spec: Spec, **how: Any) -> tuple[dict[str, Any], bytes]:
    given: dict[str, Any] = {"resumed": False, "inbox_base": 0, "task_file": TASK_FILE, "spool_limit_bytes": 1 << 20}
    return start_of(execution(spec), **{**given, **how})


def test_the_whole_environment() -> None:
    spec = Spec(task="do", name="n", env={"A": "b", "HOME": "/elsewhere", "EXECUTION_ID": "forged"})
    assert environment_of(execution(spec, attempt=3), resumed=True, task_file=TASK_FILE) == {
        "PATH": "/state/home/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/elsewhere",
        "USER": "agent",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "A": "b",
        "GATEWAY_INTERFACE": "CARREL/1",
        "EXECUTION_ID": "exe_x",
        "EXECUTION_NAME": "n",
        "EXECUTION_ATTEMPT": "3",
        "EXECUTION_RESUMED": "1",
        "EXECUTION_STARTED_AT": "2026-03-01T12:00:00.250Z",
        "TASK": "do",
        "TASK_FILE": "/run/task",
        "WORKSPACE": "/workspace",
        "STATE_DIR": "/state",
        "ARTIFACTS_DIR": "/workspace/artifacts",
    }


GATEWAY = {
    "MODEL": "m",
    "CARREL_GATEWAY": "http://gw",
    "CARREL_GATEWAY_TOKEN": "cgt_1",
    "OPENAI_BASE_URL": "http://gw/v1",
}


def test_a_declaration_is_filled_in(tmp_path: Path) -> None:
    config = HarnessFile(
        f"{tmp_path}/deep/config.json", '{"url": "{gateway}", "key": "{token}", "e": "{execution}"}', 0o600
    )
    mine = Harness(
        "mine",
        ("/bin/echo", "{model}", "{task}", "{state} {home} {workspace}"),
        resume_argv=("mine", "--continue"),
        env={"OPENAI_BASE_URL": "{gateway}/openai", "A": "1"},
        files=(config,),
    )
    spec = Spec(task="do {model}", harness="mine", declared=mine, env={"A": "2"})
    fields, _ = started(spec, gateway=GATEWAY)
    assert fields["argv"][-4:] == ["/bin/echo", "m", "do {model}", "/state /state/home /workspace"]
    told = {name: fields["env"][name] for name in ("MODEL", "OPENAI_BASE_URL", "A")}
    assert told == {"MODEL": "m", "OPENAI_BASE_URL": "http://gw/openai", "A": "2"}
    # What init starts writes the files, and becomes the program.
    ran = subprocess.run(fields["argv"], capture_output=True, check=True)
    assert ran.stdout == b"m do {model} /state /state/home /workspace\n"
    written = Path(config.path)
    assert written.read_text() == '{"url": "http://gw", "key": "cgt_1", "e": "exe_x"}'
    assert written.stat().st_mode & 0o777 == 0o600
    assert started(replace(spec, declared=replace(mine, files=())), resumed=True)[0]["argv"] == ["mine", "--continue"]


def test_a_program_that_is_missing_ends_as_in_a_shell(tmp_path: Path) -> None:
    mine = Harness("mine", ("/no/such",), files=(HarnessFile(f"{tmp_path}/x", ""),))
    fields, _ = started(Spec(harness="mine", declared=mine))
    ran = subprocess.run(fields["argv"], capture_output=True, check=False)
    assert (ran.returncode, ran.stderr) == (127, b"/no/such: No such file or directory\n")


def test_a_command_of_the_submitters_is_left_as_it_is() -> None:
    assert started(Spec(harness="command", command=("echo", "{task}")))[0]["argv"] == ["echo", "{task}"]


def test_a_deadline_is_told_both_ways() -> None:
    spec = Spec(task="", limits=Limits(deadline_s=90.0))
    env = environment_of(execution(spec, deadline_at=CREATED), resumed=False, task_file=TASK_FILE)
    assert (env["LIMIT_SECONDS"], env["DEADLINE"]) == ("90", "2026-03-01T12:00:00.250Z")
    assert "DEADLINE" not in environment_of(execution(), resumed=False, task_file=TASK_FILE)


def test_limits_that_are_the_harness_own_to_keep() -> None:
    spec = Spec(limits=Limits(steps=30))
    env = environment_of(execution(spec, budget=Budget(micros=5, tokens=7)), resumed=False, task_file=TASK_FILE)
    assert (env["LIMIT_STEPS"], env["LIMIT_MICROS"], env["LIMIT_TOKENS"]) == ("30", "5", "7")
    assert not {name for name in environment_of(execution(), resumed=False, task_file=TASK_FILE) if "LIMIT" in name}


def test_the_way_out_as_programs_find_it() -> None:
    """What it is called is the contract's; where a model is, the submitter may say otherwise."""
    gateway = {"CARREL_GATEWAY": "g", "CARREL_GATEWAY_TOKEN": "t", "OPENAI_BASE_URL": "g/v1", "MODEL": "m"}
    spec = Spec(env={"CARREL_GATEWAY_TOKEN": "forged", "MODEL": "mine"})
    env = environment_of(execution(spec), resumed=False, task_file=TASK_FILE, gateway=gateway)
    assert {name: env[name] for name in gateway} == {**gateway, "MODEL": "mine"}
    fields, _ = started(spec, gateway=gateway)
    assert fields["outlet_port"] == 7411 and fields["env"]["OPENAI_BASE_URL"] == "g/v1"
    assert "outlet_port" not in started(spec)[0]


@pytest.mark.parametrize(("task", "told"), [("x" * 65_536, True), ("x" * 65_537, False), ("é" * 40_000, False)])
def test_a_long_task_is_only_in_its_file(task: str, told: bool) -> None:
    fields, payload = started(Spec(task=task))
    assert ("TASK" in fields["env"]) is told
    assert payload == task.encode()


@pytest.mark.parametrize(
    ("spec", "first"),
    [
        (Spec(task="script", harness="bash"), None),
        (Spec(task="do", harness="command", command=("x",)), b"do\n"),
        (Spec(task="do", harness="command", command=("x",), stdin="none"), None),
        (Spec(task="", harness="command", command=("x",)), None),
    ],
)
def test_what_comes_first_on_stdin(spec: Spec, first: bytes | None) -> None:
    assert started(spec)[0].get("stdin_first") == first


def test_a_jsonl_task_is_an_object_of_its_own() -> None:
    fields, _ = started(Spec(task="two\nlines", harness="command", command=("x",), stdin="jsonl"))
    assert json.loads(fields["stdin_first"]) == {"type": "task", "id": "task", "text": "two\nlines"}
    assert fields["stdin"] == "jsonl"


@pytest.mark.parametrize(
    ("message", "mode", "bytes_"),
    [
        (Message(1, "m", b"hi"), "text", b"hi\n"),
        (Message(1, "m", b"hi\n"), "text", b"hi\n"),
        (Message(1, "m", b"\xff", mode="raw"), "text", b"\xff"),
        (Message(1, "m", b""), "text", b"\n"),
    ],
)
def test_messages_as_lines(message: Message, mode: Any, bytes_: bytes) -> None:
    assert input_of(message, mode) == bytes_


def test_messages_as_objects() -> None:
    line = input_of(Message(1, "m", "zwei\nZeilen ü".encode(), mode="follow_up"), "jsonl")
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    said = {"type": "user_message", "id": "m", "text": "zwei\nZeilen ü", "mode": "follow_up"}
    assert json.loads(line) == said


@pytest.mark.parametrize(
    ("attempt", "resumes", "cut", "base"),
    [(1, True, None, 0), (2, False, None, 0), (2, True, None, 3), (2, False, 2, 2), (2, False, 0, 0), (3, True, 4, 4)],
)
def test_where_the_inbox_of_an_attempt_begins(attempt: int, resumes: bool, cut: int | None, base: int) -> None:
    record = execution(attempt=attempt, delivered=5, consumed=3)
    assert inbox_base(record, resumes=resumes, cut=cut) == base


def test_a_harness_that_never_says_what_it_used_goes_on_after_what_it_was_given() -> None:
    assert inbox_base(execution(attempt=2, delivered=5), resumes=True, cut=None) == 5


def test_one_that_knows_messages_by_their_ids_gets_again_what_it_had_not_said_it_used() -> None:
    record = execution(Spec(harness="command", command=("x",), stdin="jsonl"), attempt=2, delivered=5)
    assert inbox_base(record, resumes=True, cut=None) == 0
    assert inbox_base(replace(record, consumed=2), resumes=True, cut=None) == 2
