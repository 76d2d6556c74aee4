"""The first token of an installation: a file only its owner can read, its hash in the store. Knows no HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from orchestrator.clock import Clock, SystemClock
from orchestrator.errors import BadInput
from orchestrator.tokens import PREFIX, Scope, Token, Tokens, digest_of, mint

logger = logging.getLogger(__name__)

FILE: Final = "admin-token"
ADMIN_ID: Final = "tok_admin"
_SECRET: Final = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_-]{43}")


async def ensure_admin_token(data_dir: Path, tokens: Tokens, *, clock: Clock | None = None) -> Path:
    """The file `<data_dir>/admin-token`: written at the first start, the same one ever after, whoever starts first.

    Registers its hash every time, so a store that was emptied knows it again. Raises BadInput for a file that holds
    something else, StoreUnavailable."""
    path = data_dir / FILE
    secret = await asyncio.to_thread(_read_or_make, path)
    created_at = (clock or SystemClock()).now()
    await tokens.put(Token(ADMIN_ID, digest_of(secret), frozenset(Scope), created_at=created_at, note="first start"))
    return path


def _read_or_make(path: Path) -> str:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        _make(path)
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if stat.S_IMODE(os.fstat(file).st_mode) & 0o077:
            os.fchmod(file, 0o600)
            logger.warning("the admin token could be read by others; it is 0600 now", extra={"path": str(path)})
        secret = os.read(file, 4096).decode("ascii", "replace").strip()
    finally:
        os.close(file)
    if not _SECRET.fullmatch(secret):
        raise BadInput(
            f"{path} does not hold a token",
            field="data_dir",
            limit="the file as it was written",
            remedy=f"remove {path} and start again: a new one is made",
        )
    return secret


def _make(path: Path) -> None:
    """Whole or not at all: written beside it, then linked, which fails where another process was first."""
    # One left by a crash here is harmless: its secret was never registered.
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    file = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(file, 0o600)  # whatever the umask
        os.write(file, mint().encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
    try:
        os.link(beside, path)
    except FileExistsError:
        pass
    finally:
        beside.unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
