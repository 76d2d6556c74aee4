"""What one sandbox's requests meet: each is let in, told apart and answered. Knows who asks (one execution) and every
room behind; makes no call itself.

Closed by default: without the lease nothing passes, without the execution's own token nothing but the proxy does, and
what is not in the table of routes goes nowhere.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from typing import Any, Final

from orchestrator.errors import BadInput, CarrelError, Forbidden
from orchestrator.events import MODEL_REFUSED, Entry
from orchestrator.execution import Execution
from orchestrator.gateway.asking import model_of, model_request, parsed, written
from orchestrator.gateway.calling import Calling
from orchestrator.gateway.delivering import deliver
from orchestrator.gateway.egress_port import Egress, Head
from orchestrator.gateway.exchange import Exchange
from orchestrator.gateway.headers import upward
from orchestrator.gateway.journal_routes import BODY_BYTES, JournalRoutes, as_json, spend_shown
from orchestrator.gateway.listing import listed, models, one
from orchestrator.gateway.pace import Pace
from orchestrator.gateway.refusals import Refused, Tongue
from orchestrator.gateway.room import Holding, Room
from orchestrator.gateway.routes import Kind, Route, route, tongue_of
from orchestrator.gateway.slots import Deserted, Slots
from orchestrator.gateway.token import shows
from orchestrator.gateway.upstream import Ask, Broken, Unreached, Unwanted, Upstream
from orchestrator.gateway.web_reach import reaching
from orchestrator.gateways import Tell
from orchestrator.models import ModelApi, ModelPolicy, Provider

logger = logging.getLogger(__name__)

CONNECTIONS: Final = 512  # of one sandbox at once; the outlet allows fewer
_TOLD: Final = 200  # refusals of one attempt that go into the history; the same one goes once
_JSON: Final = (("content-type", "application/json"),)


class Front:
    """For one attempt. `execution`: as last read."""

    def __init__(
        self,
        execution: Execution,
        policy: ModelPolicy,
        token: str,
        calling: Calling,
        journal: JournalRoutes,
        upstream: Upstream,
        egress: Egress | None,
        *,
        slots: Slots,
        room: Room,
        pace: Pace,
        tell: Tell,
        held: Callable[[], bool],
    ) -> None:
        self.execution = execution
        self.closing = False
        self.delivering: set[asyncio.Task[Any]] = set()  # exchanges that carry a model's answer
        self._policy = policy
        self._token = token
        self._calling = calling
        self._journal = journal
        self._upstream = upstream
        self._egress = egress
        self._slots = slots
        self._room = room
        self._pace = pace
        self._tell = tell
        self._held = held
        self._open = 0
        self._told: set[tuple[object, ...]] = set()

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, to its end."""
        exchange = Exchange(reader, writer)
        self._open += 1
        try:
            await self._serve(exchange)
            await exchange.close()
        except (ConnectionError, Deserted):
            pass  # the client went
        except Exception:  # an actor: one exchange's failure is not the others'
            logger.exception("gateway exchange", extra={"execution": self.execution.id})
        finally:
            self._open -= 1
            exchange.abandon()

    async def _serve(self, exchange: Exchange) -> None:
        tongue = Tongue.OPENAI
        try:
            head = await exchange.head()
            if head is None or self.closing:
                return
            version = head.header("anthropic-version")
            tongue = tongue_of(head.target, anthropic_version=version)
            self._let_in()
            found = route(head.method, head.target, anthropic_version=version)
            if found.kind in (Kind.TUNNEL, Kind.FORWARD):
                await self._proxy(exchange, head, found)
                return
            if not shows(self._token, head.header("authorization"), head.header("x-api-key")):
                raise Refused(
                    401, "unauthorized", "this is not the token of this execution; it is in CARREL_GATEWAY_TOKEN"
                )
            await self._answer(exchange, head, found)
        except Refused as refused:
            if refused.told:
                await self._tell_of(refused, None, "")
            await exchange.refuse(refused, tongue)

    def _let_in(self) -> None:
        if not self._held() or self._calling.fenced:
            raise Refused(503, "not_held", "this worker may have lost the execution; ask again", retry_after_s=1)
        if self._open > CONNECTIONS:
            raise Refused(503, "too_many", f"more than {CONNECTIONS} connections at once", retry_after_s=1)

    async def _proxy(self, exchange: Exchange, head: Head, found: Route) -> None:
        if self._egress is None:
            raise Refused(403, "egress_refused", "there is no way out of this sandbox but to models")
        if found.kind is Kind.TUNNEL:
            await self._egress.tunnel(head, exchange.reader, exchange.writer, exchange.leftover())
        else:
            await self._egress.forward(head, exchange.plain(), exchange.reader, exchange.writer)
        exchange.started = True

    async def _answer(self, exchange: Exchange, head: Head, found: Route) -> None:
        match found.kind:
            case Kind.MODEL:
                await self._model(exchange, head, found)
            case Kind.COUNT:
                await self._count(exchange, head, found)
            case Kind.MODELS:
                names = models(self._policy, self._tenant, self.execution.spec.model, found.tongue)
                said = one(self._policy, self._tenant, found.rest, found.tongue) if found.rest else None
                await exchange.answer(200, _JSON, as_json(said or listed(names, found.tongue)))
            case Kind.ALIVE:
                await exchange.answer(200, [], b"", bodyless=True)
            case Kind.SPEND:
                await exchange.answer(200, _JSON, as_json(spend_shown(self._calling.spend, self.execution.budget)))
            case Kind.INTENTS | Kind.INTENTS_FINISH:
                await self._intents(exchange, head, found)

    @property
    def _tenant(self) -> str:
        return self.execution.spec.tenant

    # ---- models

    async def _model(self, exchange: Exchange, head: Head, found: Route) -> None:
        assert found.api is not None
        holding = Holding(self._room)
        model = ""
        try:
            raw = await self._body(exchange, head, holding)
            api, path, key = found.api, found.path, head.header("idempotency-key")
            request = await self._pace.take(len(raw), lambda: model_request(api, path, raw, key=key))
            model = request.model
            provider = self._provider(request.api, model, request.body)
            ask = _ask(provider, request.api, head, found, request.sent)
            price = self._policy.price(model)
            flight, seat = await self._calling.join(request, ask, price, holding, exchange.watch())
        except Refused as refused:
            holding.release()
            if refused.told:
                await self._tell_of(refused, found.api, model)
                refused.told = False
            raise
        except BaseException:
            holding.release()
            raise
        landed = False
        task = asyncio.current_task()
        assert task is not None
        self.delivering.add(task)
        try:
            landed = await deliver(exchange, flight, seat, request)
        finally:
            self.delivering.discard(task)
            await self._calling.leave(request, flight, seat, landed=landed)

    async def _count(self, exchange: Exchange, head: Head, found: Route) -> None:
        """Passed through: free, and never the same twice."""
        assert found.api is not None
        holding = Holding(self._room)
        try:
            raw = await self._body(exchange, head, holding)
            body, sent = await self._pace.take(len(raw), lambda: _read(raw))
            provider = self._provider(found.api, model_of(body), body)
            gone = exchange.watch()
            ask = _ask(provider, found.api, head, found, sent)
            async with (
                self._slots.one(_done(gone)),
                self._upstream.answer(ask, wanted=lambda: not gone.done()) as answered,
            ):
                counted = b"".join([chunk async for chunk in answered.chunks])
                await exchange.answer(answered.status, answered.headers.items(), counted)
        except Unreached as error:
            raise Refused(504 if error.silent else 502, "provider_unreachable", error.why) from None
        except Broken as error:
            raise Refused(502, "provider_broke_off", error.why) from None
        except Unwanted:
            return
        finally:
            holding.release()

    async def _body(self, exchange: Exchange, head: Head, holding: Holding) -> bytes:
        if (coding := head.header("content-encoding")) not in ("", "identity"):
            raise Refused(
                415,
                "invalid",
                f"content-encoding {coding[:32]!r} is not read",
                field="content-encoding",
                remedy="send it plain",
            )
        return await exchange.body(self._policy.request_bytes, holding)

    def _provider(self, api: ModelApi, model: str, body: dict[str, object]) -> Provider:
        """Who answers this, if it may be asked. Raises Refused."""
        try:
            provider = self._policy.provider(self._tenant, api, model)
        except Forbidden as error:
            raise Refused.of(error, 403, code="model_forbidden", told=True) from error
        except BadInput as error:
            raise Refused.of(error, 404, code="model_not_found", told=True) from error
        if not self._policy.web_tools and (what := reaching(api, model, body)):
            raise Refused(
                403,
                "web_tool_refused",
                f"{what} would have the provider reach into the web for this sandbox, which is not allowed here; "
                "leave it out, use the proxy and the egress allowlist, or have the operator set web_tools",
                field="tools",
                told=True,
            )
        return provider

    async def _tell_of(self, refused: Refused, api: ModelApi | None, model: str) -> None:
        """Once each, and not without end: a sandbox that asks in a loop shall not fill its history."""
        this = (api, model, refused.status, refused.code, refused.message)
        if this in self._told or len(self._told) >= _TOLD:
            return
        self._told.add(this)
        data = {
            "api": str(api or ""),
            "model": model,
            "status": refused.status,
            "code": refused.code,
            "why": refused.message,
        }
        try:
            await self._tell(Entry(MODEL_REFUSED, data))
        except CarrelError as error:
            logger.warning("a refusal was not told: %s", error.message, extra={"execution": self.execution.id})

    # ---- intents

    async def _intents(self, exchange: Exchange, head: Head, found: Route) -> None:
        holding = Holding(self._room)
        try:
            if head.method == "GET":
                raw = await exchange.body(0, holding)
                gone = exchange.watch()
                said = await self._journal.get(found.asked("key"), found.asked("wait_s"), gone)
            else:
                raw = await exchange.body(BODY_BYTES, holding)
                verb = self._journal.begin if found.kind is Kind.INTENTS else self._journal.finish
                said = await verb(raw)
        finally:
            holding.release()
        await exchange.answer(200, _JSON, as_json(said))


def _read(raw: bytes) -> tuple[dict[str, Any], bytes]:
    body = parsed(raw)
    return body, written(body)


def _ask(provider: Provider, api: ModelApi, head: Head, found: Route, body: bytes) -> Ask:
    # The one flag Anthropic's own client puts behind the path.
    path = found.path + ("?beta=true" if found.asked("beta") == "true" else "")
    return Ask(provider, path, upward(head.headers, provider, api), body)


async def _done(gone: asyncio.Future[bool]) -> None:
    await asyncio.wait({gone})
