"""Reads every history and says what was lost, doubled, out of order, and how often each ended. Believes no counter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from orchestrator import events
from orchestrator.events import Cursor, Event
from orchestrator.execution import Execution, OutcomeKind
from tests.faults.ground import Ground


@dataclass
class Verdict:
    """Over all executions of a campaign. `odd`: what else was wrong, in words."""

    executions: int = 0
    lost: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    endings: int = 0
    restarts: int = 0
    adoptions: int = 0
    odd: list[str] = field(default_factory=list)

    def line(self, kills: int, seed: int) -> str:
        return (
            f"lost={self.lost} duplicated={self.duplicated} out_of_order={self.out_of_order} "
            f"endings={self.endings}/{self.executions} kills={kills} seed={seed}"
        )

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.out_of_order or self.restarts or self.odd) and (
            self.endings == self.executions
        )


async def told(ground: Ground, execution: Execution) -> list[Event]:
    """The whole history."""
    found: list[Event] = []
    cursor = Cursor()
    while True:
        page = await ground.history.read(execution.id, cursor)
        if not page.events:
            return found
        found += page.events
        cursor = page.next


async def judge(ground: Ground, executions: Sequence[Execution], lines: int) -> Verdict:
    """Each of them printed 1…lines, a number a line, and ended with 0."""
    verdict = Verdict(executions=len(executions))
    for execution in executions:
        history = await told(ground, execution)
        record = await ground.executions.get(execution.id)
        printed = b"".join(e.body or b"" for e in history if e.type == events.OUTPUT and e.data["stream"] == "stdout")
        numbers = [int(word) for word in printed.split()]
        missing = lines - len(set(numbers))
        verdict.lost += missing
        verdict.duplicated += len(numbers) - len(set(numbers))
        verdict.out_of_order += sum(b < a for a, b in pairwise(numbers))
        ends = sum(event.type == events.FINISHED for event in history)
        verdict.endings += ends == 1 and history[-1].type == events.FINISHED
        verdict.adoptions += sum(event.type == events.ADOPTED for event in history)
        if [event.seq for event in history] != list(range(1, len(history) + 1)):
            verdict.odd.append(f"{execution.id}: seq is not contiguous")
        if record.outcome is None or record.outcome.kind is not OutcomeKind.SUCCEEDED:
            verdict.odd.append(f"{execution.id}: ended as {record.outcome}")
        if record.sandbox_id is None or record.attempt != 1:
            why = [dict(event.data) for event in history if event.type == events.SANDBOX_LOST]
            verdict.odd.append(f"{execution.id}: attempt {record.attempt}, {why}")
        else:
            verdict.restarts += ground.starts(record.sandbox_id) - 1
    return verdict
