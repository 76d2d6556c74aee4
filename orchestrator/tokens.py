"""Who may call: tokens, what they allow, and the port of where they are kept. Knows no HTTP and no Redis.

A token is 256 random bits, shown once, kept only as its sha256. Guessing is hopeless at that size, so a plain hash
does: there is nothing for a slow one to protect.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

PREFIX: Final = "crl_"  # so that scanners of leaked secrets, and people, recognise one


class Scope(StrEnum):
    """What a token allows. ADMIN includes the others and what belongs to no tenant."""

    READ = "read"
    WRITE = "write"
    ATTACH = "attach"  # into the sandbox itself: exec, writing files, terminals
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token: never the secret. `digest` = sha256 of it, hex."""

    id: str
    digest: str
    scopes: frozenset[Scope]
    tenant: str = "default"
    created_at: datetime | None = None
    note: str = ""

    def allows(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


class Tokens(Protocol):
    """The tokens of an installation. All methods raise StoreUnavailable."""

    async def put(self, token: Token) -> None:
        """Keep it, in place of one with the same digest. Durable when this returns."""

    async def find(self, digest: str) -> Token | None:
        """The token with this digest."""

    async def list(self) -> Sequence[Token]:
        """All of them, oldest first."""

    async def revoke(self, token_id: str) -> bool:
        """Forget it; False when there is none. An api that has just seen it serves it a few seconds longer."""


def mint() -> str:
    """A new secret."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
