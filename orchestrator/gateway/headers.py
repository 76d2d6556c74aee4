"""Which headers pass, and the key kept out of everything that goes in. Pure.

By lists of what passes: a client's own credentials, cookies and proxy headers have no way through, nor has what a
provider tells about its customer (organization, cookies).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from orchestrator.models import ModelApi, Provider

_UP: Final = frozenset({"accept", "user-agent", "anthropic-version", "anthropic-beta", "openai-beta"})
_DOWN: Final = frozenset(
    {
        "content-type",
        "request-id",
        "x-request-id",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        "openai-model",
        "openai-processing-ms",
        "openai-version",
    }
)
_DOWN_BEGIN: Final = ("anthropic-ratelimit-", "x-ratelimit-")
#: What of them is worth telling again with a recorded answer.
_TOLD_AGAIN: Final = frozenset({"content-type", "request-id", "x-request-id", "openai-model"})
_ANTHROPIC_VERSION: Final = "2023-06-01"
_SECRET_BYTES: Final = 16
_WORD_BYTES: Final = 6
_VALUE_BYTES: Final = 4096

MASK: Final = b"[key]"


def upward(client: Iterable[tuple[str, str]], provider: Provider, api: ModelApi) -> dict[str, str]:
    """What goes to the provider. Configured headers come last and count."""
    sent: dict[str, str] = {}
    for name, value in client:
        if name in _UP and value.isascii() and len(value) <= _VALUE_BYTES:
            sent[name] = f"{sent[name]},{value}" if name in sent else value
    sent |= {"content-type": "application/json", "accept-encoding": "identity"}
    if api is ModelApi.MESSAGES:
        sent.setdefault("anthropic-version", _ANTHROPIC_VERSION)
        if provider.key:
            sent["x-api-key"] = provider.key
    elif provider.key:
        sent["authorization"] = f"Bearer {provider.key}"
    return sent | {name.lower(): value for name, value in provider.headers.items()}


def downward(answered: Iterable[tuple[str, str]], keeper: KeyKeeper) -> dict[str, str]:
    """What of the provider's goes to the client."""
    return {
        name: keeper.clean_text(value)
        for name, value in ((name.lower(), value) for name, value in answered)
        if name in _DOWN or (name.startswith(_DOWN_BEGIN) and not keeper.is_in_name(name))
    }


def told_again(headers: Mapping[str, str]) -> dict[str, str]:
    """For the record."""
    return {name: value for name, value in headers.items() if name in _TOLD_AGAIN}


class KeyKeeper:
    """Takes a provider's secrets out of what it says: whole events, whole bodies, or what `split` lets go.

    A key for a server that wants none is often a word, "ollama" or "not-needed", which an answer may well contain: out
    of answers only what is long enough to be a secret is taken, out of errors and headers more."""

    def __init__(self, provider: Provider) -> None:
        values = [provider.key, *provider.headers.values()]
        words = {word.encode() for value in values for word in (value, value.partition(" ")[2])}
        self._words = sorted((word for word in words if len(word) >= _WORD_BYTES), key=len, reverse=True)
        self._secrets = [word for word in self._words if len(word) >= _SECRET_BYTES]

    def clean(self, data: bytes) -> bytes:
        """An answer, or an event of one."""
        for secret in self._secrets:
            if secret in data:
                data = data.replace(secret, MASK)
        return data

    def split(self, data: bytes) -> tuple[bytes, bytes]:
        """What may go on, clean; and the end that may yet be the beginning of a secret."""
        clean = self.clean(data)
        kept = max((len(secret) for secret in self._secrets), default=1) - 1
        return clean[: len(clean) - kept], clean[len(clean) - kept :]

    def clean_error(self, data: bytes) -> bytes:
        for word in self._words:
            data = data.replace(word, MASK)
        return data

    def clean_text(self, text: str) -> str:
        """A header's value, or why something failed."""
        return self.clean_error(text.encode("utf-8", "replace")).decode("utf-8", "replace")

    def is_in_name(self, name: str) -> bool:
        """Of a header: those have no case."""
        return any(word.lower() in name.encode() for word in self._words)
