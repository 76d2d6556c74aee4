"""How much a model call can cost before it is made, and what it cost where nobody says. Pure; errs to the high side.

Tokens are counted as bytes / 3: English has about 4 bytes a token, code 3, most other scripts 2 to 3 bytes a character
and a token each. What is attached in base64 is no text: its tokens follow its size on the page, not its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from orchestrator.calls import ModelUsage
from orchestrator.models import ModelApi, Price

BYTES_PER_TOKEN: Final = 3
DEFAULT_OUTPUT_TOKENS: Final = 8192  # where the request sets no bound and the model's own is not known
CUT_OUTPUT_TOKENS: Final = 2048  # of an answer that broke off unseen: more than most, less than the bound
IMAGE_TOKENS: Final = 5_000  # of one picture, at most
_DOCUMENT_BYTES_PER_TOKEN: Final = 20
_ATTACHED_BYTES: Final = 4096  # a base64 string as long as this is an attachment
_BOUNDS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_DEEP: Final = 12


def tokens_of(size_bytes: int) -> int:
    return -(-size_bytes // BYTES_PER_TOKEN)


def reserve(body: Mapping[str, Any], size_bytes: int, api: ModelApi, price: Price | None) -> ModelUsage:
    """The most this request can cost. `size_bytes`: of the body as sent."""
    attached_bytes, attached_tokens = _attached(body.get("messages", body.get("input")), _DEEP)
    wanted = next(filter(None, (_count(body.get(name)) for name in _BOUNDS)), DEFAULT_OUTPUT_TOKENS)
    many = (_count(body.get("n")) or 1) if api is ModelApi.CHAT else 1
    return priced(
        ModelUsage(
            input_tokens=tokens_of(max(0, size_bytes - attached_bytes)) + attached_tokens,
            output_tokens=wanted * many,
            estimated=True,
        ),
        price,
    )


def if_cut(reserved: ModelUsage, price: Price | None) -> ModelUsage:
    """What it counts for when nobody saw how far it got."""
    return priced(
        ModelUsage(
            input_tokens=reserved.input_tokens,
            output_tokens=min(reserved.output_tokens, CUT_OUTPUT_TOKENS),
            estimated=True,
        ),
        price,
    )


def priced(usage: ModelUsage, price: Price | None) -> ModelUsage:
    """With its cost; no price, no money."""
    return ModelUsage(
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        price.of(usage) if price else 0,
        usage.estimated,
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40 else 0


def _attached(value: Any, deep: int) -> tuple[int, int]:
    """Bytes of attachments within a conversation, and the tokens they stand for."""
    if deep == 0:
        return 0, 0
    found = [(0, 0)]
    if isinstance(value, list):
        found = [_attached(one, deep - 1) for one in value if isinstance(one, list | dict)]
    elif isinstance(value, dict):
        for name, one in value.items():
            if isinstance(one, str) and len(one) >= _ATTACHED_BYTES and _is_base64(name, one):
                paper = "pdf" in one[:64] or "pdf" in str(value.get("media_type", value.get("filename", "")))
                found.append((len(one), len(one) // _DOCUMENT_BYTES_PER_TOKEN if paper else IMAGE_TOKENS))
            elif isinstance(one, list | dict):
                found.append(_attached(one, deep - 1))
    return sum(size for size, _ in found), sum(tokens for _, tokens in found)


def _is_base64(name: str, text: str) -> bool:
    return text.startswith("data:") or (name in ("data", "file_data") and not any(c in text[:256] for c in " \n{"))
