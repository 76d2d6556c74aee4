"""What is said to a running execution: messages and wishes. Each is durable when answered; what came of it is an event.
Knows no worker."""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Final

from fastapi import APIRouter, Body, Request, Response

from orchestrator.errors import Conflict, Infeasible, TooLarge
from orchestrator.events import SANDBOX_RESIZED, STATE, Cursor, Event
from orchestrator.execution import CancelWant, Execution, HibernateWant, InterruptWant, PauseWant, ResourcesWant
from orchestrator.executions import Want
from orchestrator.harnesses import harness_of
from orchestrator.history import Page
from orchestrator.lifecycle import ExecutionState
from orchestrator.sandbox import Fit
from orchestrator.server.parts import Parts, ThePart, Writer
from orchestrator.server.waiting import first_page, preferred_wait_s
from orchestrator.wire.record import Record
from orchestrator.wire.steering import CancelBody, MessageBody, Receipt, ResizeBody, WishBody

#: Of the 1 MiB a frame to init holds (PROTOCOL.md), less the JSON around the text.
_FRAME_BYTES: Final = (1 << 20) - 4096

_ASLEEP: Final = frozenset({ExecutionState.HIBERNATING, ExecutionState.HIBERNATED})

router = APIRouter(prefix="/v1/executions/{id}", tags=["steering"])

Wish = Annotated[WishBody, Body(default_factory=lambda: WishBody())]
Cancel = Annotated[CancelBody, Body(default_factory=lambda: CancelBody())]


def new_id() -> str:
    return secrets.token_hex(16)


async def send(parts: Parts, execution: Execution, body: MessageBody) -> Receipt:
    """Put a message into the inbox. Raises Conflict where nobody will read it, TooLarge; else as History.send."""
    stdin = execution.spec.stdin or harness_of(execution.spec).stdin
    if stdin == "none":
        raise Conflict(
            "this execution's harness reads no input",
            state=execution.state.value,
            remedy="submit it with stdin: text, or use exec",
        )
    content = body.content()
    # As JSON it must still fit one frame to init: refused here, because once accepted it cannot be delivered.
    framed = len(json.dumps(content.decode(errors="replace"))) if stdin == "jsonl" else 0
    if len(content) > parts.settings.message_limit_bytes or framed > _FRAME_BYTES:
        raise TooLarge(
            f"the message has {len(content)} bytes",
            field="text" if body.text is not None else "data_b64",
            limit=f"{parts.settings.message_limit_bytes} bytes, and {_FRAME_BYTES} when written as JSON in ASCII",
            remedy="upload a file and name it in the message",
        )
    message_id = body.id or new_id()
    # `raw`: exactly these bytes; the other modes are framed by the relay as the harness declares (line or JSON).
    mode = body.mode if body.text is not None else "raw"
    sent = await parts.history.send(execution.id, message_id, content, mode=mode)
    return Receipt(id=message_id, n=sent.n, repeated=sent.repeated, seq=sent.seq)


def cancel_want(execution: Execution, body: CancelBody) -> CancelWant:
    grace_s = execution.spec.limits.grace_s if body.grace_s is None else body.grace_s
    return CancelWant(body.id or new_id(), grace_s, body.reason)


def interrupt_want(execution: Execution, body: WishBody) -> InterruptWant:
    return InterruptWant(body.id or new_id(), execution.attempt)


async def _wish(parts: Parts, execution: Execution, want: Want) -> Record:
    return Record.of(await parts.executions.want(execution.id, want))


@router.post("/messages", status_code=202, response_model=Receipt, summary="Send")
async def message(id: str, body: MessageBody, parts: ThePart, caller: Writer) -> Receipt:
    """Once per message id, however often it is sent. Receipts: message.accepted → delivered → consumed, or expired."""
    return await send(parts, await parts.find(id, caller), body)


@router.post("/interrupt", status_code=202, response_model=Record, summary="Interrupt")
async def interrupt(id: str, parts: ThePart, caller: Writer, body: Wish) -> Record:
    """SIGINT to the harness's process group, at once, past all messages. Receipt: execution.interrupted."""
    execution = await parts.find(id, caller)
    return await _wish(parts, execution, interrupt_want(execution, body))


@router.post("/cancel", status_code=202, response_model=Record, summary="Cancel")
async def cancel(id: str, parts: ThePart, caller: Writer, body: Cancel) -> Record:
    """SIGTERM, then after `grace_s` SIGKILL to everything in the sandbox. The first cancel wins; a later one may only
    shorten the grace."""
    execution = await parts.find(id, caller)
    return await _wish(parts, execution, cancel_want(execution, body))


@router.post("/pause", status_code=202, response_model=Record, summary="Pause")
async def pause(id: str, parts: ThePart, caller: Writer, body: Wish) -> Record:
    """Freeze everything in the sandbox but init. Receipt: the transition to PAUSED."""
    return await _wish(parts, await parts.find(id, caller), PauseWant(body.id or new_id(), paused=True))


@router.post("/resume", status_code=202, response_model=Record, summary="Resume")
async def resume(id: str, parts: ThePart, caller: Writer, body: Wish) -> Record:
    """Thaw it; wake it where it sleeps. Receipt: the transition to RUNNING."""
    return await _wish(parts, await parts.find(id, caller), PauseWant(body.id or new_id(), paused=False))


@router.post("/hibernate", status_code=202, response_model=Record, summary="Hibernate")
async def hibernate(
    id: str, request: Request, response: Response, parts: ThePart, caller: Writer, body: Wish
) -> Record:
    """A snapshot, then no sandbox, no memory, no process, until a message, a resume, an exec or a terminal wakes it.
    Only of a harness that goes on with earlier work. Receipt: the transition to HIBERNATED; `Prefer: wait=N` holds the
    answer for it: 200 when it sleeps."""
    execution = await parts.find(id, caller)
    if not execution.ended and not harness_of(execution.spec).resumes:
        raise Conflict(
            f"the harness {execution.spec.harness!r} begins anew in each sandbox: asleep, its work would be lost",
            state=execution.state.value,
            remedy="`pause` freezes it; or declare a harness with `resumes = true`",
        )
    if execution.state not in _ASLEEP:
        try:
            await parts.executions.want(execution.id, HibernateWant(body.id or new_id()))
        except Conflict as refused:
            if refused.data.get("state") not in _ASLEEP:  # it went to sleep by itself while we asked
                raise
    now = await parts.executions.get(execution.id)
    if (wait_s := preferred_wait_s(request)) and now.state is not ExecutionState.HIBERNATED:
        request.scope["carrel.held"] = True
        start = Cursor(execution.generation, execution.tail)
        await first_page(parts, execution.id, start, wait_s=wait_s, enough=_slept_or_not)
        now = await parts.executions.get(execution.id)
    response.status_code = 200 if now.state is ExecutionState.HIBERNATED else 202
    return Record.of(now)


def _slept_or_not(page: Page) -> bool:
    """It sleeps, has given it up, or has ended."""
    tried = (event.data for event in page.events if event.type == STATE)
    return page.closed or any(
        data.get("to") == ExecutionState.HIBERNATED or data.get("from") == ExecutionState.HIBERNATING for data in tried
    )


@router.patch("/resources", status_code=202, response_model=Record, summary="Resize")
async def resources(
    id: str, body: ResizeBody, request: Request, response: Response, parts: ThePart, caller: Writer
) -> Record:
    """Other CPU, memory, pids or disk for the one running task. Receipt: sandbox.resized, with what its cgroup says.
    With `Prefer: wait=N` the answer waits for it: 200 when it came, 422 `infeasible` when it says that this cannot be
    given, 202 when the time was over."""
    execution = await parts.find(id, caller)
    want = ResourcesWant(body.id or new_id(), body.cpus, body.memory_bytes, body.pids, body.disk_bytes)
    wished = await parts.executions.want(execution.id, want)
    wait_s = preferred_wait_s(request)
    if wait_s:
        request.scope["carrel.held"] = True
        done = await first_page(
            parts,
            execution.id,
            Cursor(execution.generation, execution.tail),
            wait_s=wait_s,
            enough=lambda page: _resized(page, want) is not None,
        )
        if done is not None:
            _raise_infeasible(_resized(done, want))
            response.status_code = 200
        wished = await parts.executions.get(execution.id)
    return Record.of(wished)


def _resized(page: Page, want: ResourcesWant) -> Event | None:
    """The wish's receipt, where this page has it."""
    return next((e for e in page.events if e.type == SANDBOX_RESIZED and e.data.get("id") == want.id), None)


def _raise_infeasible(receipt: Event | None) -> None:
    if receipt is not None and receipt.data.get("result") == Fit.INFEASIBLE.value:
        detail = str(receipt.data.get("detail") or "the sandbox keeps what it had")
        raise Infeasible(
            f"this cannot be given: {detail}",
            field="resources",
            limit=detail,
            remedy="ask for less, or let it use less first; it goes on with what it had",
            measured=receipt.data.get("measured"),
        )
