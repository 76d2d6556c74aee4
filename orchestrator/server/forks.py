"""New executions from a snapshot of another, or from what it holds now. Knows no worker: what it writes is due, and who
lays the files is not its business."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Annotated, Final

from fastapi import APIRouter, Body, Header, Request, Response

from orchestrator.errors import BadInput, CarrelError, Conflict
from orchestrator.execution import CancelWant, Execution, Spec
from orchestrator.harnesses import harness_of
from orchestrator.server import cuts
from orchestrator.server.executions import check_idle, check_key, end, new_execution_id
from orchestrator.server.parts import Parts, ThePart, Writer
from orchestrator.server.tree import root_of
from orchestrator.server.waiting import preferred_wait_s
from orchestrator.snapshots import Origin, Snapshot, Why
from orchestrator.tokens import Token
from orchestrator.wire import bounds
from orchestrator.wire.record import Record
from orchestrator.wire.snapshot import ForkAnswer, ForkBody, RewindBody

router = APIRouter(prefix="/v1/executions/{id}", tags=["snapshots"])

#: Besides the grace of what a rewind ends: SIGKILL, its last snapshot, and the engine's removal.
_END_S: Final = 30.0
_TASK: Final = "fork-task"  # the id of the message that carries it

Key = Annotated[str, Header(max_length=bounds.IDEMPOTENCY_KEY_CHARS)]
Forked = Annotated[ForkBody, Body(default_factory=lambda: ForkBody())]


@router.post("/fork", status_code=201, response_model=ForkAnswer, summary="Fork")
async def fork(
    id: str,
    request: Request,
    response: Response,
    parts: ThePart,
    caller: Writer,
    body: Forked,
    idempotency_key: Key = "",
) -> ForkAnswer:
    """New executions that begin with this one's files and harness state, as a snapshot has them, or as they are now:
    then what runs is cut first and works on. Held for that cut (`Prefer: wait=N`, 60 s without). The same
    `Idempotency-Key`: the same forks."""
    check_key(idempotency_key)
    execution = await parts.find(id, caller)
    await parts.admission.admit()
    request.scope["carrel.held"] = True
    if body.snapshot:
        snapshot = await _of_its_family(parts, execution, body.snapshot, caller)
    else:
        wait_s = preferred_wait_s(request) or parts.settings.cut_wait_s
        snapshot = await cuts.as_it_is(parts, execution, why=Why.FORK, key=idempotency_key, wait_s=wait_s)
    spec = _spec(execution, body, snapshot)
    harness = harness_of(spec)
    check_idle(harness, body.limits)
    says = body.task is not None and harness.resumes and (spec.stdin or harness.stdin) != "none"
    if body.task is not None and not says:
        spec = replace(spec, task=body.task)
        harness.check(spec)
    await parts.admission.admit(None if snapshot.archived else snapshot.host)
    digest = _digest(execution, body.model_dump_json())
    made: list[Record] = []
    created = False
    try:
        for at, name in enumerate(body.names()):
            key = f"{idempotency_key}\nfork\n{at}" if idempotency_key else ""
            submitted = await parts.executions.submit(
                replace(spec, name=name),
                execution_id=new_execution_id(),
                idempotency_key=key,
                body_digest=digest if key else "",
            )
            created = created or submitted.created
            if says:
                assert body.task is not None
                await parts.history.send(submitted.execution.id, _TASK, body.task.encode())
            made.append(Record.of(submitted.execution))
    except CarrelError as refused:
        if made:  # they are there, and run: whoever asked has to know
            refused.data.setdefault("made", [record.id for record in made])
        raise
    parts.metrics.forks.inc(len(made))
    response.status_code = 201 if created else 200
    return ForkAnswer(snapshot=snapshot.id, executions=made)


@router.post("/rewind", status_code=201, response_model=ForkAnswer, summary="Rewind")
async def rewind(
    id: str,
    body: RewindBody,
    request: Request,
    response: Response,
    parts: ThePart,
    caller: Writer,
    idempotency_key: Key = "",
) -> ForkAnswer:
    """A fork of a snapshot that takes this one's name and labels over. Where this one has not ended it is cancelled
    first, with its own grace: two of one name would both work. What it did since the snapshot stays in its history."""
    check_key(idempotency_key)
    execution = await parts.find(id, caller)
    snapshot = await _of_its_family(parts, execution, body.snapshot, caller)
    await parts.admission.admit(None if snapshot.archived else snapshot.host)  # before anything is ended
    if snapshot.execution_id != execution.id:
        await _ended(parts, snapshot)  # looked at first: what is rewound shall not be ended in vain
    request.scope["carrel.held"] = True
    if not execution.ended:
        grace_s = execution.spec.limits.grace_s
        want = CancelWant(f"rewind-{snapshot.id}", grace_s, f"rewound to {snapshot.id}")
        await end(parts, execution, want, wait_s=grace_s + _END_S)
    spec = _spec(execution, ForkBody(), snapshot, rewind=True)
    key = f"{idempotency_key}\nrewind" if idempotency_key else ""
    submitted = await parts.executions.submit(
        replace(spec, name=execution.spec.name),
        execution_id=new_execution_id(),
        idempotency_key=key,
        body_digest=_digest(execution, body.model_dump_json()) if key else "",
    )
    parts.metrics.forks.inc()
    response.status_code = 201 if submitted.created else 200
    return ForkAnswer(snapshot=snapshot.id, executions=[Record.of(submitted.execution)])


async def _of_its_family(parts: Parts, execution: Execution, ref: str, caller: Token) -> Snapshot:
    """The snapshot, of this execution or of another of its tree."""
    snapshot = await parts.find_snapshot(ref, caller)
    if snapshot.execution_id != execution.id:
        tree = await parts.snapshots.tree(await root_of(parts, execution))
        if all(snapshot.id != other.id for other in tree):
            raise BadInput(
                f"snapshot: {snapshot.id} is of {snapshot.execution_id}, which is no kin of {execution.id}",
                field="snapshot",
                limit="a snapshot in its tree (`carrel tree`)",
                remedy=f"fork {snapshot.execution_id} instead",
            )
    return snapshot


async def _ended(parts: Parts, snapshot: Snapshot) -> None:
    other = await parts.executions.get(snapshot.execution_id)
    if not other.ended:
        raise Conflict(
            f"{snapshot.id} is of {other.id}, which is {other.state}",
            state=other.state.value,
            remedy="fork it under another name, or end that one first",
        )


def _spec(execution: Execution, body: ForkBody, snapshot: Snapshot, *, rewind: bool = False) -> Spec:
    """The other's, with what it was given since (resources, allowlist, budget), and what shall be different."""
    spec = execution.spec
    limits = replace(spec.limits, budget=execution.budget)
    return replace(
        spec,
        name="",
        labels={**spec.labels, **body.labels},
        env={**spec.env, **body.env},
        resources=body.resources.noun(execution.resources),
        limits=body.limits.noun(limits),
        egress=execution.egress if body.egress is None else body.egress.noun(),
        model=spec.model if body.model is None else body.model,
        origin=Origin(snapshot.execution_id, snapshot.id, snapshot.cut.seq, rewind),
    )


def _digest(execution: Execution, body: str) -> str:
    return hashlib.sha256(f"{execution.id}\n{body}".encode()).hexdigest()
