"""The scripted model among the providers: of every name where it is alone, of its own name beside others."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import BadInput
from orchestrator.models import ModelApi, ModelPolicy, Provider
from orchestrator.scripted_provider import with_scripted_model
from tests.scripted_model.peer import APIS, CHAT, ask, request, said

REAL = Provider("real", "https://real.example", (ModelApi.MESSAGES,), "k")


def test_alone_it_is_every_model_and_the_default() -> None:
    with with_scripted_model(ModelPolicy(), "demo") as policy:
        provider = policy.provider("any", ModelApi.CHAT, "whatever")
        assert (provider.name, policy.default_model) == ("scripted", "scripted")
        assert ask(provider.base_url, "POST", CHAT, request(CHAT, "hi")).status == 401
        for api in APIS:
            got = ask(provider.base_url, "POST", api, request(api, "hi"), x_api_key=provider.key)
            assert "No model is configured" in said(api, got)[1]
        price = policy.price("scripted")
        assert price is not None and price.input == 0
    with pytest.raises(OSError):
        ask(provider.base_url, "GET", "/")


def test_beside_others_it_is_asked_by_its_name_only() -> None:
    with with_scripted_model(ModelPolicy(providers=(REAL,), default_model="m"), "demo") as policy:
        assert policy.provider("any", ModelApi.MESSAGES, "m") is REAL
        assert policy.provider("any", ModelApi.MESSAGES, "scripted").name == "scripted"
        assert policy.default_model == "m"


def test_a_script_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('[{"text": "mine"}]')
    with with_scripted_model(ModelPolicy(), str(file)) as policy:
        (provider,) = policy.providers
        assert said(CHAT, ask(provider.base_url, "POST", CHAT, request(CHAT, "a"), x_api_key=provider.key))[1] == "mine"
    file.write_text("{")
    with pytest.raises(BadInput) as wrong, with_scripted_model(ModelPolicy(), str(file)):
        pass
    assert wrong.value.field == "scripted_model" and str(file) in wrong.value.message
