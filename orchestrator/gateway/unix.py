"""Gateways on unix sockets: opened, updated, closed. The port `orchestrator.gateways` as this worker keeps it.

A gateway's socket is bound under another name and renamed over the one before: at no moment is there none to dial. It
is never removed again, for it may be the next worker's by then; the slot goes with the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from orchestrator.calls import Calls
from orchestrator.clock import Clock
from orchestrator.execution import Execution
from orchestrator.executions import EGRESS_RECEIVED, EGRESS_SENT
from orchestrator.gateway.calling import Calling
from orchestrator.gateway.egress_port import Egress, Egresses
from orchestrator.gateway.exchange import LANDING_S, READ_BYTES
from orchestrator.gateway.front import Front
from orchestrator.gateway.journal_routes import JournalRoutes
from orchestrator.gateway.pace import Pace
from orchestrator.gateway.room import Room
from orchestrator.gateway.slots import Slots
from orchestrator.gateway.token import token_of
from orchestrator.gateway.upstream import Upstream
from orchestrator.gateways import OUTLET_PORT, Tell
from orchestrator.history import Lease
from orchestrator.intents import Intents
from orchestrator.models import ModelPolicy

_BACKLOG: Final = 256
_REQUESTS_HELD: Final = 4  # of the largest, for one sandbox
_ALL_REQUESTS_HELD: Final = 16  # for all of this worker
_LAST_WORDS_S: Final = 5.0  # for what is cut off at the end to be settled


class UnixGateways:
    """`async with`: providers' connections are open within. Close every gateway before its end."""

    def __init__(
        self,
        policy: ModelPolicy,
        calls: Calls,
        intents: Intents,
        clock: Clock,
        secret: bytes,
        *,
        egresses: Egresses | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        """`secret`: `token.load_secret`. `egresses` None: there is no way out but to models."""
        self._policy = policy
        self._calls = calls
        self._intents = intents
        self._clock = clock
        self._secret = secret
        self._egresses = egresses
        self._upstream = Upstream(policy, clock, trust=trust)
        self._room = Room(policy.request_bytes * _ALL_REQUESTS_HELD)

    async def __aenter__(self) -> Self:
        await self._upstream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._upstream.__aexit__(kind, error, at)

    def environment(self, execution: Execution) -> Mapping[str, str]:
        here = f"http://127.0.0.1:{OUTLET_PORT}"
        token = token_of(self._secret, execution.id)
        model = execution.spec.model or self._policy.default_model
        told = {
            "CARREL_GATEWAY": here,
            "CARREL_GATEWAY_TOKEN": token,
            "OPENAI_BASE_URL": f"{here}/v1",
            "OPENAI_API_KEY": token,
            "ANTHROPIC_BASE_URL": here,
            "ANTHROPIC_API_KEY": token,
            "MODEL_API": str(self._policy.api_of(model)),
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), here),
            **dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1"),
        }
        return told | ({"MODEL": model} if model else {})

    def counted(self) -> Mapping[str, int]:
        sent, received = (0, 0) if self._egresses is None else self._egresses.carried()
        return {EGRESS_SENT: sent, EGRESS_RECEIVED: received}

    async def open(
        self, lease: Lease, execution: Execution, at: Path, *, tell: Tell, held: Callable[[], bool]
    ) -> UnixGateway:
        await self._calls.recover(lease)
        slots = Slots(self._policy.concurrency)
        tasks = _Tasks()
        calling = Calling(
            self._calls,
            self._upstream,
            self._clock,
            lease,
            execution.attempt,
            slots=slots,
            held=held,
            spend=execution.spend,
            start=tasks.start_call,
        )
        journal = JournalRoutes(self._intents, lease, execution.attempt)
        egress = self._egresses.open(execution, tell=tell, held=held) if self._egresses is not None else None
        listener: socket.socket | asyncio.Server | None = None
        try:
            front = Front(
                execution,
                self._policy,
                token_of(self._secret, execution.id),
                calling,
                journal,
                self._upstream,
                egress,
                slots=slots,
                room=Room(self._policy.request_bytes * _REQUESTS_HELD, self._room),
                pace=Pace(self._clock),
                tell=tell,
                held=held,
            )
            listener = bound = _bound(at)
            listener = server = await asyncio.start_unix_server(
                lambda reader, writer: tasks.start_exchange(front, reader, writer),
                sock=bound,
                limit=READ_BYTES,
                start_serving=False,
            )
            await server.start_serving()
        except BaseException:  # a cancellation, too: nobody else knows of what listens there
            if listener is not None:
                listener.close()
            if egress is not None:
                await egress.close()
            raise
        return UnixGateway(front, calling, journal, egress, server, tasks)


class UnixGateway:
    """Open for one attempt."""

    def __init__(
        self,
        front: Front,
        calling: Calling,
        journal: JournalRoutes,
        egress: Egress | None,
        server: asyncio.Server,
        tasks: _Tasks,
    ) -> None:
        self._front = front
        self._calling = calling
        self._journal = journal
        self._egress = egress
        self._server = server
        self._tasks = tasks

    @property
    def busy(self) -> bool:
        return self._tasks.calling

    def update(self, execution: Execution) -> None:
        budget = self._front.execution.budget
        self._front.execution = execution
        if execution.budget != budget:
            self._calling.budget_changed()
        self._journal.woken()
        if self._egress is not None:
            self._egress.update(execution)

    async def close(self, *, grace_s: float) -> None:
        if not self._front.closing:
            self._front.closing = True
            self._server.close()
            self._calling.close()
        await self._tasks.end(grace_s)
        if self._egress is not None:
            await self._egress.close()


class _Tasks:
    """Every task of one gateway: nothing outlives `end`. An answer under way is a call's and its clients' together, so
    both have the grace; what only listens (a tunnel, a question to a person) has none."""

    def __init__(self) -> None:
        self._calls: set[asyncio.Task[None]] = set()
        self._exchanges: dict[asyncio.Task[None], Front] = {}

    @property
    def calling(self) -> bool:
        return bool(self._calls)

    def start_call(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call, name="gateway-call")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def start_exchange(self, front: Front, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.create_task(front.serve(reader, writer), name="gateway-exchange")
        self._exchanges[task] = front
        task.add_done_callback(lambda done: self._exchanges.pop(done, None))

    async def end(self, grace_s: float) -> None:
        if grace_s > 0:
            if self._calls:
                await asyncio.wait(set(self._calls), timeout=grace_s)
            if left := self._front_delivers():
                await asyncio.wait(left, timeout=min(grace_s, LANDING_S))
        await _cancelled(self._calls)
        await _cancelled(self._exchanges.keys())

    def _front_delivers(self) -> set[asyncio.Task[None]]:
        """Whose clients have an answer's end still to come."""
        return {task for task, front in self._exchanges.items() if task in front.delivering}


async def _cancelled(tasks: Any) -> None:
    while there := set(tasks):
        for task in there:
            task.cancel()
        await asyncio.wait(there, timeout=_LAST_WORDS_S)


def _bound(at: Path) -> socket.socket:
    """Listening at `at`, in place of whoever did. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(at.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    part = f".{at.name}.{secrets.token_hex(4)}"
    try:
        listener.setblocking(False)
        # An address holds 107 bytes, a data directory may be deeper.
        listener.bind(f"/proc/self/fd/{folder}/{part}")
        # init may be another user's root, whom permissions hold; the directory is closed to everybody else.
        Path(f"/proc/self/fd/{folder}/{part}").chmod(0o666)
        listener.listen(_BACKLOG)
        os.rename(part, at.name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        listener.close()
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=folder)
        raise
    finally:
        os.close(folder)
    return listener
