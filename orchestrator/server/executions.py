"""Submit, list, look at, remove. Knows no engine: what it writes is due, and who does it is not its business."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from ulid import ULID

from orchestrator.errors import BadInput, Conflict, NotFound
from orchestrator.events import Cursor
from orchestrator.execution import CancelWant, Execution, FileRef, OutcomeKind
from orchestrator.executions import Filter
from orchestrator.harnesses import BUILT_IN, Harness
from orchestrator.lifecycle import ExecutionState
from orchestrator.models import check_allowed
from orchestrator.server.parts import Parts, Reader, ThePart, Writer
from orchestrator.server.waiting import first_page, preferred_wait_s
from orchestrator.wire import bounds
from orchestrator.wire.record import Record, RecordPage
from orchestrator.wire.submission import FileBody, LimitsBody, SubmitBody
from orchestrator.workspace import DiskUse

router = APIRouter(prefix="/v1/executions", tags=["executions"])

_KEY: Final = re.compile(rf"[\x21-\x7e]{{1,{bounds.IDEMPOTENCY_KEY_CHARS}}}")
_MOST_LISTED: Final = 500
#: How long a forced removal waits for the end it asked for: SIGKILL and the engine's removal take well under it.
_FORCED_END_S: Final = 30.0


def new_execution_id() -> str:
    return f"exe_{ULID()}".lower()


@router.post("", status_code=201, response_model=Record, summary="Submit")
async def submit(
    body: SubmitBody,
    parts: ThePart,
    caller: Writer,
    response: Response,
    idempotency_key: Annotated[str, Header(max_length=bounds.IDEMPOTENCY_KEY_CHARS)] = "",
) -> Record:
    """Durable when answered: 201. The same `Idempotency-Key` with the same body: 200 and the same execution. 507 with
    Retry-After where there is no room for new work."""
    check_key(idempotency_key)
    spec = body.spec(
        tenant=caller.tenant,
        files=(),
        resources=parts.settings.default_resources,
        limits=parts.settings.default_limits,
    )
    harness = parts.settings.catalogue.get(spec.harness)
    harness.check(spec)
    if spec.model:
        check_allowed(parts.settings.allowed_models, spec.tenant, spec.model)  # the gateway would only say so later
    check_idle(harness, body.limits)
    await parts.admission.admit()
    files = await _files(parts, body.files)
    if spec.archive and await parts.blobs.has(spec.archive) is None:
        raise BadInput(
            "archive: no content with this digest is here",
            field="archive",
            limit="a digest that was uploaded",
            remedy="upload it to POST /v1/blobs first",
        )
    # Of the body, not of the spec: the installation's defaults may change between two sends of one key.
    digest = hashlib.sha256(json.dumps(body.model_dump(), sort_keys=True).encode()).hexdigest()
    submitted = await parts.executions.submit(
        replace(spec, files=files, declared=None if harness.name in BUILT_IN else harness),
        execution_id=new_execution_id(),
        idempotency_key=idempotency_key,
        body_digest=digest if idempotency_key else "",
    )
    response.status_code = 201 if submitted.created else 200
    response.headers["Location"] = f"/v1/executions/{submitted.execution.id}"
    return Record.of(submitted.execution)


def check_key(idempotency_key: str) -> None:
    """Raises BadInput."""
    if idempotency_key and not _KEY.fullmatch(idempotency_key):
        raise BadInput(
            "the idempotency key has characters it may not have",
            field="Idempotency-Key",
            limit=f"1 to {bounds.IDEMPOTENCY_KEY_CHARS} visible ASCII characters",
            remedy="use a UUID",
        )


def check_idle(harness: Harness, asked: LimitsBody) -> None:
    """Raises BadInput."""
    if asked.idle_timeout_s is not None and not harness.resumes:
        raise BadInput(
            f"the harness {harness.name!r} cannot be put to sleep: it would begin anew",
            field="limits.idle_timeout_s",
            limit="a harness that resumes",
            remedy="take it out, pause it by hand, or declare in its file that it `resumes`",
        )


async def _files(parts: Parts, files: list[FileBody]) -> tuple[FileRef, ...]:
    """Contents that came inline are stored first: a record never names what is not there."""
    found: list[FileRef] = []
    total = 0
    for at, file in enumerate(files):
        inline = file.inline()
        if inline is not None:
            sha256, size = await parts.blobs.put(_once(inline), limit_bytes=bounds.BODY_BYTES)
        else:
            sha256 = file.sha256 or ""
            there = await parts.blobs.has(sha256)
            if there is None:
                raise BadInput(
                    f"files[{at}]: no content with this digest is here",
                    field=f"files[{at}].sha256",
                    limit="a digest that was uploaded",
                    remedy="upload it to POST /v1/blobs first",
                )
            size = there
        total += size
        if total > bounds.FILES_BYTES:
            raise BadInput(
                "the files are too large",
                field="files",
                limit=f"{bounds.FILES_BYTES} bytes in all",
                remedy="send less, or fetch it from inside",
            )
        found.append(FileRef(file.path, sha256, size, int(file.mode, 8)))
    return tuple(found)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


@router.get("", response_model=RecordPage, summary="List")
async def list_executions(
    parts: ThePart,
    caller: Reader,
    state: Annotated[list[ExecutionState], Query(default_factory=list)],
    outcome: Annotated[list[OutcomeKind], Query(default_factory=list)],
    label: Annotated[list[str], Query(default_factory=list, max_length=bounds.LABEL_COUNT)],
    name: Annotated[str, Query(max_length=64)] = "",
    harness: Annotated[str, Query(max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 50,
    cursor: Annotated[str, Query(max_length=512)] = "",
) -> RecordPage:
    """Newest first. `label=key=value`, repeated: all must match. `state`, `outcome`, repeated: any."""
    wanted = Filter(
        states=frozenset(state), outcomes=frozenset(outcome), labels=_labels(label), name=name, harness=harness
    )
    found = await parts.executions.list(wanted, tenant=caller.tenant, cursor=cursor, limit=limit)
    return RecordPage(executions=[Record.of(execution) for execution in found.executions], next=found.next)


def _labels(labels: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals or not bounds.LABEL_KEY.fullmatch(key) or len(value) > bounds.LABEL_VALUE_CHARS:
            raise BadInput(
                f"{label[:80]!r} is not a label", field="label", limit="key=value", remedy="for example label=team=core"
            )
        pairs[key] = value
    return pairs


@router.get("/{id}", response_model=Record, summary="Record")
async def record(
    id: str,
    request: Request,
    parts: ThePart,
    caller: Reader,
    after: Annotated[int | None, Query(ge=0, description="the `tail` the caller has seen")] = None,
    until: Annotated[Literal["changed", "ended"], Query()] = "changed",
    disk: Annotated[bool, Query(description="measure its workspace, too; null where it lies on another host")] = False,
) -> Record:
    """With `Prefer: wait=N` (at most 60 s) the answer comes when the record has moved past `after` (default: as it is
    now) or has ended; with `until=ended` only when it has ended, or when the time is over."""
    execution = await parts.find(id, caller)
    wait_s = preferred_wait_s(request)
    since = execution.tail if after is None else after
    if wait_s and not execution.ended and (until == "ended" or execution.tail <= since):
        request.scope["carrel.held"] = True
        await first_page(
            parts,
            execution.id,
            Cursor(execution.generation, execution.tail),
            wait_s=wait_s,
            enough=lambda page: page.closed or (until == "changed" and page.tail > since),
        )
        execution = await parts.executions.get(execution.id)
    record = Record.of(execution, await _disk(parts, execution) if disk else None)
    if execution.state is ExecutionState.QUEUED:
        return record.model_copy(update={"waits_for": await parts.admission.waits(execution.host)})
    return record


async def _disk(parts: Parts, execution: Execution) -> DiskUse | None:
    here = parts.store is not None and execution.host == parts.settings.host
    if parts.store is None or not here or execution.sandbox_id is None:
        return None
    try:
        use = await parts.store.disk(execution.sandbox_id)
        # A store that cannot bound it knows no limit; its worker measures against this one.
        return replace(use, limit_bytes=use.limit_bytes or execution.resources.disk_bytes)
    except NotFound:
        return None  # it sleeps, and only its snapshot is left


@router.delete("/{id}", status_code=204, response_class=Response, summary="Remove")
async def remove(id: str, parts: ThePart, caller: Writer, force: Annotated[bool, Query()] = False) -> Response:
    """Record, history, inbox, files and artifacts of one that has ended. `force=true` ends it first, with no grace."""
    execution = await parts.find(id, caller)
    if not execution.ended and force:
        want = CancelWant(f"remove-{execution.id}", 0.0, "removed by force")
        await end(parts, execution, want, wait_s=_FORCED_END_S)
    await parts.removing.execution(execution)
    return Response(status_code=204)


async def end(parts: Parts, execution: Execution, want: CancelWant, *, wait_s: float) -> None:
    """End it and wait until it has. Raises Conflict when it has not after `wait_s`."""
    try:
        execution = await parts.executions.want(execution.id, want)
    except Conflict:
        execution = await parts.executions.get(execution.id)
    if execution.ended:
        return
    start = Cursor(execution.generation, execution.tail)
    ended = await first_page(parts, execution.id, start, wait_s=wait_s, enough=lambda page: page.closed)
    if ended is None:
        raise Conflict(
            f"it was told to end and has not in {wait_s:g} s",
            state=execution.state.value,
            remedy="see that a worker runs on its host, then try again",
        )
