"""Speaks to providers: connections kept open, the key put on, asked again where that can help. Knows nothing of what an
answer means, nor of records and money.

One pool a provider, for all gateways of the worker. Redirects are not followed: they would carry the key to wherever an
answer says. Neither environment nor netrc is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx

from orchestrator.clock import Clock
from orchestrator.gateway.headers import KeyKeeper, downward
from orchestrator.gateway.patience import Patience, asked_s, may_be_asked_again
from orchestrator.gateway.refusals import Refused
from orchestrator.models import ModelPolicy, Provider

CONNECT_S: Final = 10.0
SILENCE_S: Final = 900.0  # a long answer that is not streamed says nothing until it is whole
WRITE_S: Final = 60.0
IDLE_S: Final = 55.0  # a kept connection; less than what providers' own front ends allow
ERROR_BYTES: Final = 1 << 20  # of an error's body; the rest is not read
_KEPT: Final = 128
_DECODED: Final = ("", "identity", "gzip", "deflate")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to one provider. `headers`: as they go out, key included."""

    provider: Provider
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """A provider's answer as it begins. `chunks`: the body as it comes, no content coding left; raises Broken.
    `headers`: those that may go to the client. `retries`: how often it was asked before."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    retries: int

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class Broken(Exception):
    """The answer broke off. `silent`: nothing came for SILENCE_S."""

    def __init__(self, why: str, *, silent: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.silent = silent


class Unreached(Exception):
    """No answer, and no more tries. `sent`: the request may have reached the provider, who may have worked on it."""

    def __init__(self, why: str, *, sent: bool, silent: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.sent = sent
        self.silent = silent


class Unwanted(Exception):
    """Nobody waits for it any more; it was not asked again."""


class Upstream:
    """`async with`: the connections are open within."""

    def __init__(self, policy: ModelPolicy, clock: Clock, *, trust: ssl.SSLContext | None = None) -> None:
        """`trust`: other certificates than the public authorities'."""
        self._policy = policy
        self._clock = clock
        self._trust = trust
        self._pools: dict[str, httpx.AsyncClient] = {}
        self._chance = random.Random()

    async def __aenter__(self) -> Self:
        # Now, while nobody waits: certificates are read and much is imported by the first.
        for provider in self._policy.providers:
            self._pool(provider)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            await pool.aclose()

    def _pool(self, provider: Provider) -> httpx.AsyncClient:
        if provider.name not in self._pools:
            if self._trust is None:
                self._trust = httpx.create_ssl_context(trust_env=False)  # 20 ms, so once for all
            self._pools[provider.name] = httpx.AsyncClient(
                verify=self._trust,
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S, write=WRITE_S, pool=None),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=_KEPT, keepalive_expiry=IDLE_S),
            )
        return self._pools[provider.name]

    @contextlib.asynccontextmanager
    async def answer(self, ask: Ask, *, wanted: Callable[[], bool]) -> AsyncIterator[Answered]:
        """The answer that counts, open within the block. `wanted`: asked before each further try.

        Raises Unreached, Unwanted; Refused (502) for a redirect and what cannot be read."""
        patience = Patience.of(self._policy)
        keeper = KeyKeeper(ask.provider)
        while True:
            wish_s: float | None = None
            try:
                response = await self._send(ask)
            except httpx.TransportError as error:
                pause_s = None if isinstance(error, httpx.ReadTimeout) else patience.pause_s(self._chance, None)
                if pause_s is None:
                    raise _unreached(ask.provider, error, keeper) from None
            else:
                try:
                    headers = {name.lower(): value for name, value in response.headers.items()}
                    _check(response, ask.provider)
                    body = b"" if response.is_success else await _error_body(response)
                    if not response.is_success and may_be_asked_again(response.status_code, headers, body):
                        wish_s = asked_s(headers, self._clock.now())
                        pause_s = patience.pause_s(self._chance, wish_s)
                    else:
                        pause_s = None
                    if pause_s is None:
                        chunks = _chunks(response) if response.is_success else _whole(keeper.clean_error(body))
                        told = downward(response.headers.multi_items(), keeper)
                        async with contextlib.aclosing(chunks):
                            yield Answered(response.status_code, told, chunks, patience.tried)
                        return
                finally:
                    await response.aclose()
            await asyncio.sleep(pause_s)
            patience = patience.after(pause_s)
            if not wanted():
                raise Unwanted

    async def _send(self, ask: Ask) -> httpx.Response:
        pool = self._pool(ask.provider)
        request = pool.build_request(
            "POST", ask.provider.base_url.rstrip("/") + ask.path, headers=dict(ask.headers), content=ask.body
        )
        return await pool.send(request, stream=True)


def _unreached(provider: Provider, error: httpx.TransportError, keeper: KeyKeeper) -> Unreached:
    sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    silent = isinstance(error, httpx.TimeoutException)
    why = keeper.clean_text(str(error)) or type(error).__name__
    return Unreached(f"{provider.name} does not answer: {why}", sent=sent, silent=silent)


def _check(response: httpx.Response, provider: Provider) -> None:
    if response.is_redirect or 300 <= response.status_code < 400:
        raise Refused(
            502,
            "provider_redirected",
            f"{provider.name} answered with a redirect ({response.status_code}), which is not followed; "
            "the operator should set its base_url to where it leads",
        )
    if (coding := response.headers.get("content-encoding", "").lower()) not in _DECODED:
        raise Refused(502, "provider_coding", f"{provider.name} answered in content-encoding {coding[:32]!r}, unasked")


async def _chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Raises Broken."""
    try:
        async for chunk in response.aiter_bytes():
            if chunk:
                yield chunk
    except httpx.ReadTimeout:
        raise Broken(f"silent for {SILENCE_S:.0f} s", silent=True) from None
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise Broken(str(error) or type(error).__name__) from None


async def _error_body(response: httpx.Response) -> bytes:
    """What there is of it; an error whose words break off is one all the same."""
    body = bytearray()
    with contextlib.suppress(Broken):
        async for chunk in _chunks(response):
            body += chunk
            if len(body) > ERROR_BYTES:
                break
    return bytes(body[:ERROR_BYTES])


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
