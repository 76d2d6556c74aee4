"""When the next snapshot by period is due: measured from the last one, and never twice of what stood still. Pure but
for one question at the beginning; time is an argument."""

from __future__ import annotations

from orchestrator.engine.parts import Parts
from orchestrator.errors import StoreUnavailable
from orchestrator.execution import Execution


class Cadence:
    """Of one attempt in one epoch. `every_s` None: never. `age_s`: of the last one."""

    def __init__(self, every_s: float | None, now: float, age_s: float = 0.0) -> None:
        self.every_s = every_s
        self._due_at = None if every_s is None else now + every_s - min(max(age_s, 0.0), every_s)
        self._still = False

    @classmethod
    async def of(cls, parts: Parts, execution: Execution) -> Cadence:
        """As the execution's newest snapshot has it. Where nobody can say: from now."""
        every_s, now = execution.spec.snapshots.every_s, parts.clock.monotonic()
        age_s = 0.0
        if every_s is not None and execution.snapshot_id is not None:
            try:
                page = await parts.snapshots.list(tenant=execution.spec.tenant, execution_id=execution.id, limit=1)
            except StoreUnavailable:
                return cls(every_s, now)
            if page.snapshots:
                age_s = (parts.clock.now() - page.snapshots[0].created_at).total_seconds()
        return cls(every_s, now, age_s)

    def due(self, now: float, *, frozen: bool) -> bool:
        self._still = self._still and frozen
        return self._due_at is not None and now >= self._due_at and not self._still

    def taken(self, now: float, *, frozen: bool) -> None:
        """One was, of whatever kind, or could not be."""
        self._still = frozen
        if self.every_s is not None:
            self._due_at = now + self.every_s

    def moment(self, *, frozen: bool) -> float | None:
        """When to look again."""
        return None if self._still and frozen else self._due_at
