"""The journal of intents: what a harness told before it did it, and a person's decision where nobody knows whether it
was done. Knows no harness."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query

from orchestrator.intents import IntentState
from orchestrator.server.parts import Reader, ThePart, Writer
from orchestrator.wire.way_out import IntentAnswer, IntentPage, SettleBody

router = APIRouter(prefix="/v1/executions/{id}/intents", tags=["intents"])

_MOST_LISTED: Final = 1000


@router.get("", response_model=IntentPage, summary="Intents")
async def intents(
    id: str,
    parts: ThePart,
    caller: Reader,
    state: Annotated[list[IntentState], Query(default_factory=list)],
    after: Annotated[int, Query(ge=0, le=10**9, description="the `n` the caller has seen")] = 0,
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 100,
) -> IntentPage:
    """In the order they were begun. `state`, repeated: any. `in_doubt`: those a person has to settle."""
    execution = await parts.find(id, caller)
    found = await parts.intents.list(execution.id, states=frozenset(state), after=after, limit=limit)
    more = found[-1].n if len(found) == limit else None
    return IntentPage(intents=[IntentAnswer.of(intent) for intent in found], next=more)


@router.post("/settle", response_model=IntentAnswer, summary="Settle")
async def settle(id: str, body: SettleBody, parts: ThePart, caller: Writer) -> IntentAnswer:
    """A decision on one in doubt, in every state of the execution; a harness that waits for it goes on. The same again
    changes nothing. Event: intent.settled."""
    execution = await parts.find(id, caller)
    settled = await parts.intents.settle(
        execution.id, body.key, body.decision, result=body.result, by=caller.id or "somebody"
    )
    return IntentAnswer.of(settled)
