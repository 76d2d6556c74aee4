"""Model providers, prices, and who may use which model: what an operator settles, as nouns. Knows no HTTP and no file.

A request goes to the first provider that speaks its protocol and serves its model; the tenant's list decides whether
it may. Money is whole micro-dollars everywhere, rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from orchestrator.calls import ModelUsage
from orchestrator.errors import BadInput, Forbidden

MTOK: Final = 1_000_000


class ModelApi(StrEnum):
    """How one speaks to a model: Anthropic's /v1/messages, OpenAI's /v1/chat/completions and /v1/responses."""

    MESSAGES = "anthropic-messages"
    CHAT = "openai-chat"
    RESPONSES = "openai-responses"


@dataclass(frozen=True, slots=True)
class Provider:
    """Somewhere that serves models. `base_url` without `/v1`. `models`: name patterns (`*`), first match of all
    providers counts. `apis`: the first is the one it likes best. `key`: sent as its api wants it; never logged, never
    shown; "" = none needed."""

    name: str
    base_url: str
    apis: tuple[ModelApi, ...]
    key: str = field(default="", repr=False)
    models: tuple[str, ...] = ("*",)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Price:
    """Micro-dollars for a million tokens (which is dollars a million times a million: $3 = 3,000,000). A call whose
    input, cached or not, is longer than `long_above_tokens` costs `long` instead, all of it."""

    input: int
    output: int
    cache_read: int = 0
    cache_write: int = 0
    long: Price | None = None
    long_above_tokens: int = 0

    def of(self, usage: ModelUsage) -> int:
        """What this usage costs, in micro-dollars, rounded up."""
        input_tokens = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
        if self.long is not None and input_tokens > self.long_above_tokens:
            return self.long.of(usage)
        total = (
            usage.input_tokens * self.input
            + usage.output_tokens * self.output
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
        )
        return -(-total // MTOK)


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """All of it. `prices` and `allowed` by name pattern, first match; a tenant that is not in `allowed` may use every
    model. `default_model` and `default_api`: for executions that name none, "" = there is none."""

    providers: tuple[Provider, ...] = ()
    prices: Mapping[str, Price] = field(default_factory=dict)
    allowed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default_model: str = ""
    default_api: ModelApi | None = None  # None: as each provider likes best
    request_bytes: int = 32 << 20
    concurrency: int = 8  # of one execution
    retries: int = 6  # after 429, 5xx, or no connection; none once a byte of an answer came
    retry_s: float = 60.0  # for so long in all; a provider's Retry-After counts
    web_tools: bool = False  # tools of the provider's own that reach the web

    def provider(self, tenant: str, api: ModelApi, model: str) -> Provider:
        """Raises Forbidden (the tenant may not), BadInput(field="model") naming what there is."""
        check_allowed(self.allowed, tenant, model)
        for provider in self.providers:
            if api in provider.apis and any(fnmatchcase(model, pattern) for pattern in provider.models):
                return provider
        served = " | ".join(f"{p.name}: {', '.join(p.models)}" for p in self.providers if api in p.apis)
        raise BadInput(
            f"no provider serves model {model!r} by {api}",
            field="model",
            limit=served or f"no provider speaks {api}",
            remedy="ask for one of these, or have the operator add a provider",
        )

    def price(self, model: str) -> Price | None:
        """None: nobody said; such a call counts tokens and no money."""
        for pattern, price in self.prices.items():
            if fnmatchcase(model, pattern):
                return price
        return None

    def api_of(self, model: str) -> ModelApi:
        """How to speak to this model: by the default api where its provider has that, else as that likes best."""
        for provider in self.providers:
            if any(fnmatchcase(model, pattern) for pattern in provider.models):
                if self.default_api is not None and self.default_api in provider.apis:
                    return self.default_api
                return provider.apis[0]
        return self.default_api or ModelApi.MESSAGES


def check_allowed(allowed: Mapping[str, tuple[str, ...]], tenant: str, model: str) -> None:
    """Whether a tenant may use a model (`ModelPolicy.allowed`). Raises Forbidden(field="model") naming what it may."""
    patterns = allowed.get(tenant)
    if patterns is None or any(fnmatchcase(model, pattern) for pattern in patterns):
        return
    raise Forbidden(
        f"model {model!r} is not allowed for tenant {tenant!r}",
        field="model",
        limit=" | ".join(patterns) or "none",
        remedy=f"ask for one of these, or have the operator add it to the models of [tenants.{tenant}]",
    )
