"""A harness as it is declared: how a program wants to be started and spoken to. Knows not how that is done, and reads
no file (`orchestrator.catalogue` does).

The declaration stands in the spec as it was at the submit: a changed file changes no execution that is under way, and
a worker needs no catalogue of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from orchestrator.errors import BadInput

if TYPE_CHECKING:
    from orchestrator.execution import Spec

StdinMode = Literal["none", "text", "jsonl"]
OutputMode = Literal["auto", "bytes", "jsonl"]

#: What may stand as `{name}` in argv, env and files, and what it becomes at the start of an attempt.
PLACEHOLDERS: Final[Mapping[str, str]] = {
    "task": "the task's text",
    "model": "the model's name",
    "gateway": "the model gateway's address, without /v1",
    "token": "the execution's own token for it",
    "state": "/state",
    "home": "/state/home",
    "workspace": "/workspace",
    "execution": "the execution's id",
}
#: The kernel caps one argument at 128 KiB.
TASK_IN_ARGV_BYTES: Final = 120 * 1024

_BRACES: Final = re.compile(r"\{\{([a-z_]+)\}\}|\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class HarnessFile:
    """A file written before every start. `path` absolute, below /state; `mode` as chmod takes it."""

    path: str
    text: str
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Harness:
    """`argv` None = the spec's command; `resume_argv`: instead of it when earlier work is there, None = the same again
    (EXECUTION_RESUMED tells). `image` "" = the installation's. `resumes`: started again in its old workspace it goes on
    instead of beginning anew. `interrupt`: the signal an interrupt sends to its process group. `reads_task`: the task
    comes first on its stdin (it is in TASK and TASK_FILE in any case). `api`: the one way it speaks to a model, as a
    `ModelApi` value; "" = any, or none at all.

    argv, env and files may hold placeholders, see `fill`.
    """

    name: str
    argv: tuple[str, ...] | None
    stdin: StdinMode = "text"
    output: OutputMode = "auto"
    env: Mapping[str, str] = field(default_factory=dict)
    resumes: bool = False
    interrupt: int = 2
    reads_task: bool = True
    image: str = ""
    resume_argv: tuple[str, ...] | None = None
    files: tuple[HarnessFile, ...] = ()
    api: str = ""
    about: str = ""

    def texts(self) -> Iterator[tuple[str, str]]:
        """(field, text) of everything that may hold placeholders."""
        for at, text in enumerate(self.argv or ()):
            yield f"argv[{at}]", text
        for at, text in enumerate(self.resume_argv or ()):
            yield f"resume_argv[{at}]", text
        for name, text in self.env.items():
            yield f"env.{name}", text
        for file in self.files:
            yield f"files.{file.path}", file.text

    def check(self, spec: Spec) -> None:
        """Raises BadInput(field="task") for a task this program cannot be given."""
        if any("task" in named(text) for text in (*(self.argv or ()), *(self.resume_argv or ()))):
            size = len(spec.task.encode())
            if size > TASK_IN_ARGV_BYTES or "\0" in spec.task:
                raise BadInput(
                    f"the task has {size} bytes, and {self.name} takes it as an argument",
                    field="task",
                    limit=f"{TASK_IN_ARGV_BYTES} bytes without NUL",
                    remedy="upload a file and name it in the task",
                )


#: The two that every installation has. `bash`: the task is a script. `command`: any argv.
BUILT_IN: Final[Mapping[str, Harness]] = {
    harness.name: harness
    for harness in (
        Harness("bash", ("/bin/bash", "/run/task"), reads_task=False, about="the task is a script for bash"),
        Harness("command", None, about="any program: `command` is its argv"),
    )
}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every declaration of an installation."""

    harnesses: Mapping[str, Harness] = field(default_factory=lambda: BUILT_IN)

    def get(self, name: str) -> Harness:
        """Raises BadInput(field="harness") for one that is not in the catalogue."""
        try:
            return self.harnesses[name]
        except KeyError:
            raise BadInput(
                f"no harness {name!r} in the catalogue",
                field="harness",
                limit=" | ".join(self.harnesses),
                remedy="name one of these, send `command` for any program, or declare it in a file in `harness_dir`",
            ) from None

    def __iter__(self) -> Iterator[Harness]:
        return iter(self.harnesses.values())


def harness_of(spec: Spec) -> Harness:
    """The declaration of a spec. Raises BadInput(field="harness") for one that has none and names no built-in one."""
    return spec.declared or Catalogue().get(spec.harness)


def argv_of(spec: Spec, *, resumed: bool = False) -> tuple[str, ...]:
    """The command line init starts, placeholders not filled."""
    harness = harness_of(spec)
    if resumed and harness.resume_argv is not None:
        return harness.resume_argv
    return spec.command if harness.argv is None else harness.argv


def named(text: str) -> set[str]:
    """The placeholders in a text, known or not."""
    return {found[2] for found in _BRACES.finditer(text) if found[2]}


def fill(text: str, values: Mapping[str, str]) -> str:
    """`{name}` becomes its value, `{{name}}` becomes `{name}`. A brace that is not right around lower-case letters
    means nothing: JSON needs no escapes. A value is never looked at again."""
    return _BRACES.sub(lambda found: f"{{{found[1]}}}" if found[1] else values.get(found[2], found[0]), text)
