"""The egress proxy of one sandbox: each request is admitted, resolved, dialled and carried, or refused with the reason.

Ties policy, dialling and carrying together; the front gives it connections, the engine changes its allowlist. A name
must be on the allowlist, every address it has must be public or opened by the operator, and in TLS the server named
must be the host that was asked for. What fails any of it is answered 400 or 403, and is an event.
"""

from __future__ import annotations

import contextlib
import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

from orchestrator.execution import Execution
from orchestrator.gateway import egress_port
from orchestrator.gateway.egress_answer import CUT_STATUS, ESTABLISHED, Answer, refusal, unreachable
from orchestrator.gateway.egress_dial import Resolve, SystemResolver, Unreachable, dial
from orchestrator.gateway.egress_flow import CHUNK_BYTES, IDLE_S, Cut, Flow, Traffic
from orchestrator.gateway.egress_http import Exchange
from orchestrator.gateway.egress_inner import InnerRequest
from orchestrator.gateway.egress_policy import Network, Policy, Refused, allowing, networks
from orchestrator.gateway.egress_port import Head
from orchestrator.gateway.egress_refusals import Refusals
from orchestrator.gateway.egress_target import HTTP_PORT, check_host, plain_target, tunnel_target
from orchestrator.gateway.egress_tls import begins_as_tls
from orchestrator.gateway.egress_tunnel import Tunnel
from orchestrator.gateways import Tell

log = logging.getLogger(__name__)

CONNECTIONS: Final = 64  # of one sandbox at a time, tunnels and plain exchanges together
_TAKEN_OFF: Final = "it was taken off the allowlist"
_Server = tuple[StreamReader, StreamWriter]


class EgressProxy:
    """Satisfies `egress_port.Egress`. `opened`: ranges the operator opened. `whole`: where its traffic counts, too."""

    def __init__(
        self,
        execution: Execution,
        *,
        tell: Tell,
        held: Callable[[], bool],
        resolve: Resolve,
        opened: Sequence[Network] = (),
        idle_s: float = IDLE_S,
        whole: Traffic | None = None,
    ) -> None:
        self._policy = Policy.of(execution.egress)
        self._held = held
        self._resolve = resolve
        self._opened = tuple(opened)
        self._idle_s = idle_s
        self._flows: set[Flow] = set()
        self._closed = False
        self.traffic = Traffic(whole=whole)
        self.refusals = Refusals(execution.id, tell)

    async def tunnel(self, head: Head, reader: StreamReader, writer: StreamWriter, leftover: bytes) -> None:
        answer = Answer(writer)

        async def work(flow: Flow) -> None:
            self._admit(flow, *tunnel_target(head))
            async with self._connected(flow) as server:
                await answer.send(ESTABLISHED)
                first = leftover
                if flow.port == HTTP_PORT:
                    first = first or await reader.read(CHUNK_BYTES)
                    if first and not begins_as_tls(first):
                        answer.started = False  # what follows is an exchange of its own
                        request = InnerRequest(reader, first, flow)
                        inner = await request.head()
                        answer.body = inner.method != "HEAD"
                        await Exchange(inner, inner.target, server, answer, flow).run(request.body())
                        return
                await Tunnel((reader, writer), server, flow, first).run()

        await self._carried(work, answer)

    async def forward(self, head: Head, body: AsyncIterator[bytes], reader: StreamReader, writer: StreamWriter) -> None:
        answer = Answer(writer, body=head.method != "HEAD")

        async def work(flow: Flow) -> None:
            host, port, path = plain_target(head)
            self._admit(flow, host, port)
            check_host(head, flow.host, port)
            async with self._connected(flow) as server:
                await Exchange(head, path, server, answer, flow).run(body)

        await self._carried(work, answer)

    def update(self, execution: Execution) -> None:
        self._policy = Policy.of(execution.egress)
        for flow in self._flows:
            if flow.host and not self._policy.allows(flow.host, flow.port):
                flow.cut(_TAKEN_OFF)

    async def close(self) -> None:
        self._closed = True
        flows = list(self._flows)
        for flow in flows:
            flow.cut("the gateway closes")
        for flow in flows:
            await flow.over.wait()
        await self.refusals.close()

    def _admit(self, flow: Flow, host: str, port: int) -> None:
        flow.host, flow.port = self._policy.admit(host, port), port

    @contextlib.asynccontextmanager
    async def _connected(self, flow: Flow) -> AsyncIterator[_Server]:
        reader, writer = await dial(flow.host, flow.port, resolve=self._resolve, opened=self._opened)
        try:
            yield reader, writer
        except BaseException:
            writer.transport.abort()  # unsent bytes of a broken exchange are nobody's
            raise
        finally:
            writer.close()

    async def _carried(self, work: Callable[[Flow], Awaitable[None]], answer: Answer) -> None:
        """One connection from its request to its end. Raises nothing but cancellation."""
        flow = Flow(self.traffic, self._held, idle_s=self._idle_s)
        refused: Refused | None = None
        try:
            if self._closed or not self._held():
                why = "this worker may not own the execution any more"
                await answer.instead(unreachable("egress", 0, why, status=503, body=answer.body))
                return
            if len(self._flows) >= CONNECTIONS:
                remedy = "close some, or use fewer at a time"
                raise Refused("*", 0, f"{CONNECTIONS} connections are open already", remedy, status=429)
            self._flows.add(flow)
            async with flow.limit:
                await work(flow)
        except Refused as no:
            refused = no
        except Unreachable as no:
            await answer.instead(unreachable(flow.host, flow.port, str(no), body=answer.body))
        except (Cut, OSError) as broken:  # TimeoutError is an OSError: idle, or cut
            if flow.cut_why == _TAKEN_OFF:
                refused = Refused(flow.host, flow.port, _TAKEN_OFF, allowing(flow.host, flow.port))
            why = flow.cut_why or str(broken) or "it was idle for too long"
            if not refused:
                await answer.instead(unreachable(flow.host, flow.port, why, status=CUT_STATUS, body=answer.body))
        except Exception:  # one connection's failure is not the others'; closed, as all is that is not understood
            log.exception("egress to %s:%s", flow.host, flow.port)
        finally:
            self._flows.discard(flow)
            try:
                if refused:
                    await self.refusals.add(refused)
                    await answer.instead(refusal(refused, body=answer.body))
            finally:
                flow.over.set()


class EgressProxies:
    """Satisfies `egress_port.Egresses`. `private_allow`: CIDR ranges that are reachable though not public; `resolver`:
    makes one resolver for each sandbox; `idle_s`: how long nothing may pass through a connection. Raises ValueError
    for what is no range."""

    def __init__(
        self,
        private_allow: Sequence[str] = (),
        *,
        resolver: Callable[[], Resolve] = SystemResolver,
        idle_s: float = IDLE_S,
    ) -> None:
        self._opened = networks(private_allow)
        self._resolver = resolver
        self._idle_s = idle_s
        self._traffic = Traffic()

    def open(self, execution: Execution, *, tell: Tell, held: Callable[[], bool]) -> egress_port.Egress:
        return EgressProxy(
            execution,
            tell=tell,
            held=held,
            resolve=self._resolver(),
            opened=self._opened,
            idle_s=self._idle_s,
            whole=self._traffic,
        )

    def carried(self) -> tuple[int, int]:
        return self._traffic.out_bytes, self._traffic.in_bytes
