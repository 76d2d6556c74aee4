"""Who is calling: a bearer token in, what is known of it out. Knows no route and no scope's meaning."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from typing import Final

from starlette.datastructures import Headers

from orchestrator.clock import Clock
from orchestrator.errors import StoreUnavailable, Unauthorized
from orchestrator.tokens import Token, Tokens, digest_of

_REMEMBERED: Final = 1024
#: How long a revoked token may still be served by this process; what one look at the store costs is saved meanwhile.
REMEMBER_S: Final = 5.0
_LONGEST: Final = 512


class Permit:
    """That a token still holds while its stream lives: asked of the store now and then, not at each event."""

    def __init__(self, tokens: Tokens, token: Token, clock: Clock, *, every_s: float) -> None:
        self._tokens = tokens
        self._token = token
        self._clock = clock
        self._every_s = every_s
        self._next = clock.monotonic() + every_s

    async def holds(self) -> bool:
        """False once it was revoked, or lost what it may. A store that does not answer revokes nothing."""
        now = self._clock.monotonic()
        if now < self._next:
            return True
        self._next = now + self._every_s
        try:
            known = await self._tokens.find(self._token.digest)
        except StoreUnavailable:
            return True
        return known is not None and known.scopes >= self._token.scopes


class Authenticator:
    """Looks tokens up by their hash, and remembers those it found for a few seconds."""

    def __init__(self, tokens: Tokens, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        self._seen: OrderedDict[str, tuple[Token, float]] = OrderedDict()

    async def caller(self, headers: Headers) -> Token:
        """Raises Unauthorized, StoreUnavailable."""
        given = headers.getlist("authorization")
        if not given:
            raise Unauthorized("a token is needed", remedy="send the header `Authorization: Bearer <token>`")
        scheme, _, secret = given[0].partition(" ")
        secret = secret.strip()
        if len(given) > 1 or scheme.lower() != "bearer" or not secret or len(secret) > _LONGEST:
            raise Unauthorized("this is not a bearer token", remedy="send one header `Authorization: Bearer <token>`")
        digest = digest_of(secret)
        now = self._clock.monotonic()
        remembered = self._seen.get(digest)
        if remembered and remembered[1] > now:
            return remembered[0]
        token = await self._tokens.find(digest)
        # The lookup goes by the digest of a 256-bit secret, so its time tells nothing about another token; compared
        # once more in constant time, so that no store has to promise the same.
        if token is None or not hmac.compare_digest(token.digest, digest):
            self._seen.pop(digest, None)
            remedy = "an installation's first one is in the file `admin-token` of its data directory"
            raise Unauthorized("this token is not known here", remedy=remedy)
        self._seen[digest] = (token, now + REMEMBER_S)
        self._seen.move_to_end(digest)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return token
