"""The harness catalogue, to look at. Knows no file."""

from __future__ import annotations

from fastapi import APIRouter

from orchestrator.server.parts import Reader, ThePart
from orchestrator.wire.operate import HarnessAnswer, HarnessList

router = APIRouter(prefix="/v1/harnesses", tags=["operate"])


@router.get("", response_model=HarnessList, summary="Harnesses")
async def harnesses(parts: ThePart, caller: Reader) -> HarnessList:
    """What `harness` may name in a submit."""
    return HarnessList(harnesses=[HarnessAnswer.of(harness) for harness in parts.settings.catalogue])
