"""Tokens on Redis: the port `orchestrator.tokens.Tokens`, one hash from digest to what is known. Knows no secret."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from orchestrator.clock import from_ms, to_ms
from orchestrator.stores.redis.connection import Server
from orchestrator.stores.redis.keys import Keys
from orchestrator.tokens import Scope, Token


class RedisTokens:
    """See the port. Every command here may be sent twice: it sets or deletes one field."""

    def __init__(self, server: Server, keys: Keys) -> None:
        self._server = server
        self._key = keys.tokens

    async def put(self, token: Token) -> None:
        about = {
            "id": token.id,
            "scopes": sorted(token.scopes),
            "tenant": token.tenant,
            "created_ms": to_ms(token.created_at) if token.created_at else 0,
            "note": token.note,
        }
        await self._server.ask("HSET", self._key, token.digest, json.dumps(about))

    async def find(self, digest: str) -> Token | None:
        about = await self._server.ask("HGET", self._key, digest)
        return None if about is None else _token(digest, json.loads(about))

    async def list(self) -> Sequence[Token]:
        flat = await self._server.ask("HGETALL", self._key)
        pairs = zip(flat[::2], flat[1::2], strict=True)
        found = [_token(digest.decode(), json.loads(about)) for digest, about in pairs]
        return sorted(found, key=lambda token: (to_ms(token.created_at) if token.created_at else 0, token.id))

    async def revoke(self, token_id: str) -> bool:
        digests = [token.digest for token in await self.list() if token.id == token_id]
        if digests:
            await self._server.ask("HDEL", self._key, *digests)
        return bool(digests)


def _token(digest: str, about: dict[str, Any]) -> Token:
    return Token(
        id=about["id"],
        digest=digest,
        # A scope of a newer release allows nothing here.
        scopes=frozenset(Scope(scope) for scope in about["scopes"] if scope in set(Scope)),
        tenant=about["tenant"],
        created_at=from_ms(about["created_ms"]) if about["created_ms"] else None,
        note=about["note"],
    )
