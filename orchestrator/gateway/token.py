"""The token a sandbox shows to its gateway: made from the execution's id and this installation's secret, so that every
worker knows it and none keeps it. Worthless anywhere else. Knows no request.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

KEY_FILE: Final = "gateway.key"
_KEY_BYTES: Final = 32


def load_secret(data_dir: Path) -> bytes:
    """The installation's secret, made at the first call. Several processes may ask at once: one of them writes it.

    Raises OSError, ValueError (the file holds something else)."""
    path = data_dir / KEY_FILE
    with contextlib.suppress(FileNotFoundError):
        return _read(path)
    part = data_dir / f".{KEY_FILE}.{secrets.token_hex(8)}"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # link, not rename: whoever comes second takes the first one's.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(part)
    finally:
        part.unlink()
    return _read(path)


def _read(path: Path) -> bytes:
    secret = path.read_bytes()
    if len(secret) != _KEY_BYTES:
        raise ValueError(
            f"{path}: {len(secret)} bytes, a gateway's secret has {_KEY_BYTES}; remove it to have a new one"
        )
    return secret


def token_of(secret: bytes, execution_id: str) -> str:
    """`cgt_` and 40 hex digits."""
    return "cgt_" + hmac.new(secret, execution_id.encode(), hashlib.sha256).hexdigest()[:40]


def shows(token: str, authorization: str, api_key: str) -> bool:
    """True where either header holds the token. In constant time."""
    scheme, _, bearer = authorization.partition(" ")
    offered = [api_key] + ([bearer.strip()] if scheme.lower() == "bearer" else [])
    return True in [hmac.compare_digest(one.encode(), token.encode()) for one in offered]
