"""The model calls of one sandbox: each reserved before it is made, made once, recorded before its end is passed on.
Knows neither who listens nor how a provider is reached.

Two who ask the same at once share one flight. Whoever asks what was answered gets that answer. A call goes on to its
end when everybody has left, because it is paid for: the record is what they find when they come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from orchestrator.calls import Asked, Calls, ModelUsage, OverBudget, Replay, Reserved
from orchestrator.clock import Clock
from orchestrator.errors import Closed, Fenced, NotFound, StoreUnavailable
from orchestrator.execution import Spend
from orchestrator.gateway.asking import ModelRequest
from orchestrator.gateway.estimates import if_cut, reserve
from orchestrator.gateway.first import first
from orchestrator.gateway.flight import Flight, Whole, Withdrawn
from orchestrator.gateway.refusals import Refused
from orchestrator.gateway.room import Holding
from orchestrator.gateway.settling import Settling
from orchestrator.gateway.slots import Deserted, Slots
from orchestrator.gateway.taking import take
from orchestrator.gateway.upstream import Ask, Broken, Unreached, Unwanted, Upstream
from orchestrator.history import Lease
from orchestrator.models import Price

logger = logging.getLogger(__name__)

LANDING_S: Final = 1.5  # an answer that ended is with its clients by then, or they do not read


class Calling:
    """`spend`: as the store last told. `begin`s of one question are one at a time here, as the port asks."""

    def __init__(
        self,
        calls: Calls,
        upstream: Upstream,
        clock: Clock,
        lease: Lease,
        attempt: int,
        *,
        slots: Slots,
        held: Callable[[], bool],
        spend: Spend,
        start: Callable[[Any], Any],
    ) -> None:
        """`start`: runs a coroutine as a task of the gateway's."""
        self.spend = spend
        self.fenced = False
        self._calls = calls
        self._upstream = upstream
        self._lease = lease
        self._attempt = attempt
        self._slots = slots
        self._start = start
        self._settling = Settling(calls, lease, clock, held, self._spent)
        self._flights: dict[tuple[str, str], Flight] = {}
        self._news = asyncio.Event()  # the budget may be another now
        self._closing = False

    # ---- for the front

    async def join(
        self, request: ModelRequest, ask: Ask, price: Price | None, holding: Holding, gone: asyncio.Future[bool]
    ) -> tuple[Flight, object]:
        """A flight that answers this, and a seat in it; `leave` it. Takes `holding` over. Raises Deserted."""
        name = (request.key, request.digest)
        while (flight := self._flights.get(name)) is not None:
            if flight.kept and not flight.ended.is_set():
                holding.release()
                return flight, flight.join()
            # It has ended: whether this asks for its answer again or for another one depends on whether those who
            # waited have it.
            await self._wait(flight, gone)
            if gone.done():
                holding.release()
                raise Deserted
            if flight.ended.is_set() and self._flights.get(name) is flight:
                del self._flights[name]
        flight = self._flights[name] = Flight()
        seat = flight.join()
        self._start(self._run(name, flight, request, ask, price, holding))
        return flight, seat

    async def leave(self, request: ModelRequest, flight: Flight, seat: object, *, landed: bool) -> None:
        """`landed`: the client has all of it. Then the same question is a new one from now on."""
        try:
            if landed and flight.call and not request.key:
                with contextlib.suppress(StoreUnavailable, Fenced, Closed, NotFound):
                    await self._calls.delivered(self._lease, self._attempt, flight.call)
        finally:
            flight.leave(seat)
            self._forget((request.key, request.digest), flight)

    def budget_changed(self) -> None:
        """What is held for want of money is asked for again."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def close(self) -> None:
        """What is held for want of money is withdrawn; what is under way goes on."""
        self._closing = True
        self.budget_changed()

    # ---- one call

    async def _wait(self, flight: Flight, gone: asyncio.Future[bool]) -> None:
        """Until it ended and all have left it, LANDING_S after its end at most; or the asker is gone."""
        await first(flight.ended.wait(), gone)
        await first(flight.deserted(), gone, timeout_s=LANDING_S)

    def _forget(self, name: tuple[str, str], flight: Flight) -> None:
        if flight.ended.is_set() and not flight.wanted and self._flights.get(name) is flight:
            del self._flights[name]

    def _spent(self, spend: Spend) -> None:
        self.spend = spend
        self.budget_changed()  # a call ended: what it had reserved and not used is free

    async def _run(
        self,
        name: tuple[str, str],
        flight: Flight,
        request: ModelRequest,
        ask: Ask,
        price: Price | None,
        holding: Holding,
    ) -> None:
        """Whatever happens, the flight is over at the end."""
        why = "the gateway closed while it was under way"
        try:
            await self._fly(flight, request, ask, price)
            why = ""
        except Refused as refused:
            flight.open(refused)
            why = refused.message
        except (Unwanted, Deserted):
            why = "nobody waited for it any more"
        except (Fenced, Closed, NotFound):
            self.fenced = True
            flight.open(Withdrawn())
            why = "another worker has this execution now"
        except StoreUnavailable as away:
            flight.open(Refused(503, away.code, "the store does not answer; ask again", retry_after_s=1))
            why = "the store does not answer"
        except asyncio.CancelledError:
            flight.open(Withdrawn())
            raise
        except Exception:  # an actor: one call's failure is not the others'
            logger.exception("model call", extra={"execution": self._lease.execution_id})
            flight.open(Refused(500, "internal", "the gateway failed; its log says how"))
            why = "the gateway failed"
        finally:
            if not flight.ended.is_set():
                flight.crash(why)
            self._forget(name, flight)
            holding.release()

    async def _fly(self, flight: Flight, request: ModelRequest, ask: Ask, price: Price | None) -> None:
        most = reserve(request.body, len(request.sent), request.api, price)
        facts = {"api": str(request.api), "provider": ask.provider.name, "model": request.model}
        asked = Asked(request.digest, request.key, most, if_cut(most, price), facts)
        while True:
            news = self._news
            async with self._slots.one(flight.deserted()):
                self._check_open()
                match await self._calls.begin(self._lease, self._attempt, asked):
                    case Reserved(call, spend):
                        self.spend = spend
                        flight.call = call
                        await self._make(flight, request, ask, price, asked)
                        return
                    case Replay(call, answer):
                        self.spend = replace(self.spend, replays=self.spend.replays + 1)
                        flight.call = call
                        flight.open(Whole(answer, replayed=True))
                        flight.land(answer)
                        return
                    case OverBudget() as over:
                        self.spend = over.spend
            if not over.wait:
                raise over_budget(over)
            await self._hold(flight, news)

    async def _hold(self, flight: Flight, news: asyncio.Event) -> None:
        """Until the budget may be another. Raises Unwanted; Fenced when the gateway closes."""
        if not self._closing:
            await first(news.wait(), flight.deserted())
        self._check_open()
        if not flight.wanted:
            raise Unwanted

    def _check_open(self) -> None:
        """Nothing is begun by one that closes: whoever comes next begins it."""
        if self._closing:
            raise Fenced("the gateway is closing")

    async def _make(self, flight: Flight, request: ModelRequest, ask: Ask, price: Price | None, asked: Asked) -> None:
        settle = self._settling.of(flight.call, asked, price)
        try:
            async with self._upstream.answer(ask, wanted=lambda: flight.wanted) as answered:
                await take(answered, flight, request, ask.provider, settle)
        except Unwanted:
            await settle.nothing()
            raise
        except Unreached as error:
            if error.sent:
                await settle.cut(error.why)
            else:
                await settle.nothing()
            raise Refused(504 if error.silent else 502, "provider_unreachable", error.why) from None
        except Refused:
            await settle.finish(None, ModelUsage())
            raise
        except Broken as error:
            await settle.cut(error.why)
            why = f"{ask.provider.name}'s answer broke off: {error.why}"
            flight.open(Refused(504 if error.silent else 502, "provider_broke_off", why))
            flight.crash(why)
        except asyncio.CancelledError:
            await settle.cut("the gateway closed")
            raise


def over_budget(over: OverBudget) -> Refused:
    """With the figures."""
    figures = [
        f"spent {over.spend.micros} and reserved {over.spend.reserved_micros} of {over.limit_micros} micro-dollars, "
        f"this call needs up to {over.needed_micros}"
        if over.limit_micros is not None
        else "",
        f"used {over.spend.input_tokens + over.spend.output_tokens} and reserved {over.spend.reserved_tokens} of "
        f"{over.limit_tokens} tokens, this call needs up to {over.needed_tokens}"
        if over.limit_tokens is not None
        else "",
    ]
    return Refused(
        402,
        "budget_exceeded",
        "over budget: " + "; ".join(figure for figure in figures if figure),
        remedy="raise the execution's budget, or ask for fewer tokens (max_tokens)",
        spent_micros=over.spend.micros,
        spent_tokens=over.spend.input_tokens + over.spend.output_tokens,
        reserved_micros=over.spend.reserved_micros,
        reserved_tokens=over.spend.reserved_tokens,
        needed_micros=over.needed_micros,
        needed_tokens=over.needed_tokens,
        limit_micros=over.limit_micros,
        limit_tokens=over.limit_tokens,
    )
