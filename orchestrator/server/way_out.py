"""What may leave a sandbox, changed while it runs: the allowlist and the budget. Each stands in the record when
answered; the gateway takes it from there. Knows no gateway."""

from __future__ import annotations

from fastapi import APIRouter

from orchestrator.execution import BudgetWant, EgressWant
from orchestrator.server.parts import ThePart, Writer
from orchestrator.server.steering import new_id
from orchestrator.wire.record import Record
from orchestrator.wire.way_out import BudgetBody, EgressWishBody

router = APIRouter(prefix="/v1/executions/{id}", tags=["way out"])


@router.put("/egress", response_model=Record, summary="Allowlist")
async def egress(id: str, body: EgressWishBody, parts: ThePart, caller: Writer) -> Record:
    """Another allowlist, whole. Open tunnels to names that are not in it any more are closed. Event: egress.changed."""
    execution = await parts.find(id, caller)
    return Record.of(await parts.executions.want(execution.id, EgressWant(body.id or new_id(), body.noun())))


@router.patch("/budget", response_model=Record, summary="Budget")
async def budget(id: str, body: BudgetBody, parts: ThePart, caller: Writer) -> Record:
    """Another budget. It takes `over_budget` back: a call that is held is asked again. Event: budget.changed."""
    execution = await parts.find(id, caller)
    changed = BudgetWant(body.id or new_id(), body.noun(execution.budget))
    return Record.of(await parts.executions.want(execution.id, changed))
