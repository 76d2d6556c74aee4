"""The harness catalogue: one small declaration each. Knows how a program wants to be started and spoken to, not how
that is done.

A person adds their own by a declaration in one file (contract.md, "Harness catalogue").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from orchestrator.errors import BadInput
from orchestrator.execution import OutputMode, Spec, StdinMode


@dataclass(frozen=True, slots=True)
class Harness:
    """`argv` None = the spec's command. `resumes`: started again in its old workspace it goes on instead of beginning
    anew. `interrupt`: the signal an interrupt sends to its process group. `reads_task`: the task comes first on its
    stdin (it is in TASK and TASK_FILE in any case)."""

    name: str
    argv: tuple[str, ...] | None
    stdin: StdinMode = "text"
    output: OutputMode = "auto"
    env: Mapping[str, str] = field(default_factory=dict)
    resumes: bool = False
    interrupt: int = 2
    reads_task: bool = True


#: `bash`: the task is a script. `command`: any argv.
CATALOGUE: Final[dict[str, Harness]] = {
    harness.name: harness
    for harness in (
        Harness("bash", ("/bin/bash", "/run/task"), reads_task=False),
        Harness("command", None),
    )
}


def harness_of(spec: Spec) -> Harness:
    """The declaration a spec names. Raises BadInput(field="harness") for one that is not in the catalogue."""
    try:
        return CATALOGUE[spec.harness]
    except KeyError:
        raise BadInput(
            f"no harness {spec.harness!r} in the catalogue",
            field="harness",
            limit=" | ".join(CATALOGUE),
            remedy="name one of these, or send `command` for any program",
        ) from None


def argv_of(spec: Spec) -> tuple[str, ...]:
    """The command line init starts."""
    argv = harness_of(spec).argv
    return spec.command if argv is None else argv
