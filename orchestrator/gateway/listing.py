"""Which models a sandbox may use, as each provider lists its own. Pure.

Providers are configured by patterns, so what is listed is every name that somebody wrote in full: in a provider, a
price, a tenant's list, as the default, in the execution. A model that is not listed may work all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from orchestrator.errors import CarrelError
from orchestrator.gateway.refusals import Refused, Tongue
from orchestrator.models import ModelApi, ModelPolicy

_WILD: Final = frozenset("*?[")
_CREATED: Final = "2025-01-01T00:00:00Z"  # nobody asks when; the field must be there
_CREATED_S: Final = 1735689600
_APIS: Final = {Tongue.ANTHROPIC: (ModelApi.MESSAGES,), Tongue.OPENAI: (ModelApi.CHAT, ModelApi.RESPONSES)}


def models(policy: ModelPolicy, tenant: str, own: str, tongue: Tongue) -> list[str]:
    """In order, each once. `own`: the execution's model."""
    written = [own, policy.default_model]
    for provider in policy.providers:
        written += provider.models
    written += [*policy.allowed.get(tenant, ()), *policy.prices]
    return [
        name
        for name in dict.fromkeys(written)
        if name and not _WILD & set(name) and any(_usable(policy, tenant, api, name) for api in _APIS[tongue])
    ]


def listed(names: Iterable[str], tongue: Tongue) -> dict[str, Any]:
    data = [shown(name, tongue) for name in names]
    if tongue is Tongue.ANTHROPIC:
        return {
            "data": data,
            "has_more": False,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
        }
    return {"object": "list", "data": data}


def shown(name: str, tongue: Tongue) -> dict[str, Any]:
    """One of them."""
    if tongue is Tongue.ANTHROPIC:
        return {"type": "model", "id": name, "display_name": name, "created_at": _CREATED}
    return {"id": name, "object": "model", "created": _CREATED_S, "owned_by": "carrel"}


def one(policy: ModelPolicy, tenant: str, name: str, tongue: Tongue) -> dict[str, Any]:
    """Raises Refused (404)."""
    if not any(_usable(policy, tenant, api, name) for api in _APIS[tongue]):
        raise Refused(
            404, "not_found", f"there is no model {name[:128]!r} here; GET /v1/models lists some", field="model"
        )
    return shown(name, tongue)


def _usable(policy: ModelPolicy, tenant: str, api: ModelApi, name: str) -> bool:
    try:
        policy.provider(tenant, api, name)
    except CarrelError:
        return False
    return True
