"""Which model providers this host's settings name, and whether they have keys. Asks none of them, shows no key."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from orchestrator.checks import Check, Verdict
from orchestrator.errors import BadInput
from orchestrator.model_settings import load_models
from orchestrator.settings import Settings


def models(settings: Settings, environment: Mapping[str, str] | None = None) -> Iterator[Check]:
    """A check for each provider; raises nothing."""
    try:
        found = load_models(settings, environment=environment)
    except BadInput as wrong:
        yield Check("models", Verdict.MISSING, wrong.message, str(wrong.data.get("remedy", "")))
        return
    for provider in found.policy.providers:
        seen = f"{provider.name} at {provider.base_url} ({', '.join(provider.models)}), {found.keys[provider.name]}"
        address = urlsplit(provider.base_url)
        if provider.key and address.scheme == "http" and not _is_loopback(address.hostname or ""):
            yield Check("models", Verdict.WARN, seen, "the key goes there in the clear: use https")
        else:
            yield Check("models", Verdict.OK, seen)
    if found.policy.providers and not found.policy.default_model:
        remedy = "set `default_model`: agents that name none have none"
        yield Check("models", Verdict.WARN, "there is no default model", remedy)
    if settings.scripted_model:
        every = "" if found.policy.providers else ", for every name: there is no provider"
        yield Check("models", Verdict.OK, f"scripted ({settings.scripted_model}){every}")
    elif not found.policy.providers:
        remedy = "set ANTHROPIC_API_KEY or OPENAI_API_KEY where carrel is started, or see docs/operate/models.md"
        yield Check("models", Verdict.WARN, "no provider: agents have no model to ask", remedy)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
