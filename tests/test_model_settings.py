"""Providers, prices, tenants: what the file and the environment say, and every no with its place, limit and remedy."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import model_settings
from orchestrator.calls import ModelUsage
from orchestrator.checks import Check, Verdict
from orchestrator.configuration import load
from orchestrator.errors import BadInput, Forbidden
from orchestrator.model_diagnosis import models as examined
from orchestrator.model_settings import Models, load_allowed, load_models
from orchestrator.models import ModelApi, Price, Provider
from orchestrator.settings import Settings

CANARY = "sk-canary-51c7e0"
GOOD = """
    [providers.local]
    base_url = "http://127.0.0.1:8000/v1"
    apis = ["openai-chat", "openai-responses"]
    models = ["qwen3-coder", "qwen*"]
"""


def settings(**changed: object) -> Settings:
    return load(changed, environment={"CARREL_CONFIG": "/dev/null"})


def of_file(folder: Path, text: str, *, mode: int = 0o600, **environment: str) -> Models:
    path = folder / "models.toml"
    path.write_text(textwrap.dedent(text))
    path.chmod(mode)
    return load_models(settings(models_file=str(path)), environment=environment)


def of_environment(**environment: str) -> Models:
    return load_models(settings(), environment=environment)


# ---- the environment


def test_nothing_said_is_no_provider_and_no_model() -> None:
    found = of_environment()
    assert (found.policy.providers, found.policy.default_model, found.origin) == ((), "", "nowhere")


def test_a_key_is_a_provider() -> None:
    found = of_environment(ANTHROPIC_API_KEY=CANARY, OPENAI_API_KEY=f" {CANARY}2\n")
    assert found.policy.providers == (
        Provider("anthropic", "https://api.anthropic.com", (ModelApi.MESSAGES,), CANARY, ("claude-*",)),
        Provider("openai", "https://api.openai.com", (ModelApi.RESPONSES, ModelApi.CHAT), CANARY + "2", ("*",)),
    )
    assert dict(found.keys) == {"anthropic": "key from $ANTHROPIC_API_KEY", "openai": "key from $OPENAI_API_KEY"}
    assert found.policy.api_of(found.policy.default_model) is ModelApi.MESSAGES
    assert found.policy.api_of("gpt-6.2-sol") is ModelApi.RESPONSES
    for policy in (found.policy, of_environment(OPENAI_API_KEY=CANARY).policy):
        assert policy.price(policy.default_model) is not None


def test_an_address_of_ones_own_needs_no_key_and_names_no_model() -> None:
    found = of_environment(OPENAI_BASE_URL="http://localhost:11434/v1/")
    (provider,) = found.policy.providers
    assert (provider.base_url, provider.key, provider.apis[0]) == ("http://localhost:11434", "", ModelApi.CHAT)
    assert found.policy.default_model == ""
    chosen = load_models(settings(default_model="qwen3"), environment={"OPENAI_BASE_URL": "http://localhost:1/v1"})
    assert chosen.policy.provider("any", chosen.policy.api_of("qwen3"), "qwen3").name == "openai"


@pytest.mark.parametrize(
    "environment",
    [
        {"OPENAI_API_KEY": "two words"},
        {"ANTHROPIC_API_KEY": "newline\nin it"},
        {"OPENAI_BASE_URL": "localhost:11434"},
        {"OPENAI_BASE_URL": f"https://user:{CANARY}@host"},
        {"ANTHROPIC_BASE_URL": f"https://host/?key={CANARY}"},
        {"ANTHROPIC_BASE_URL": "https://[half"},
    ],
)
def test_a_bad_variable_is_named_and_its_value_is_not_told(environment: dict[str, str]) -> None:
    with pytest.raises(BadInput) as caught:
        of_environment(**environment)
    ((name, value),) = environment.items()
    assert name in caught.value.message and caught.value.data["remedy"]
    assert value not in f"{caught.value} {caught.value.data}" and CANARY not in f"{caught.value} {caught.value.data}"


# ---- the file


def test_a_file_says_it_all(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(CANARY + "\n")
    (tmp_path / "key").chmod(0o600)
    found = of_file(
        tmp_path,
        GOOD
        + """
        [providers.claude]
        base_url = "https://api.anthropic.com"
        apis = ["anthropic-messages"]
        models = ["claude-*"]
        key_file = "key"
        headers = { Anthropic-Beta = "some-beta" }

        [providers.router]
        base_url = "https://router.example/api/v1"
        apis = ["openai-chat"]
        key_env = "ROUTER_KEY"

        [prices]
        "qwen*" = { input = 0.15, output = 0.6 }
        "claude-sonnet-5-5*" = { input = 1, output = 2, cache_read = 0.1, cache_write = 1.25 }

        [tenants.small]
        models = ["qwen*"]
        """,
        ROUTER_KEY="r-key",
    )
    policy = found.policy
    assert [provider.name for provider in policy.providers] == ["local", "claude", "router"]
    assert policy.providers[0].base_url == "http://127.0.0.1:8000"
    assert policy.providers[1].key == CANARY and policy.providers[1].headers == {"anthropic-beta": "some-beta"}
    assert policy.providers[2] == Provider("router", "https://router.example/api", (ModelApi.CHAT,), "r-key", ("*",))
    assert dict(found.keys) == {
        "local": "no key",
        "claude": f"key from {tmp_path}/key",
        "router": "key from $ROUTER_KEY",
    }
    assert policy.default_model == "qwen3-coder"
    assert policy.price("qwen3") == Price(150_000, 600_000, 150_000, 150_000)
    assert policy.price("claude-sonnet-5-5") == Price(1_000_000, 2_000_000, 100_000, 1_250_000)
    assert policy.price("claude-opus-5-5") is not None  # the shipped table is still there
    with pytest.raises(Forbidden):
        policy.provider("small", ModelApi.MESSAGES, "claude-opus-5-5")
    assert policy.provider("other", ModelApi.MESSAGES, "claude-opus-5-5").name == "claude"
    assert CANARY not in repr(found) and "r-key" not in repr(found)


def test_who_may_use_what_is_read_without_any_key(tmp_path: Path) -> None:
    """By an api process that has none."""
    path = tmp_path / "models.toml"
    path.write_text(
        '[providers.p]\nbase_url = "https://p.test"\napis = ["openai-chat"]\nkey_env = "NOT_SET_HERE"\n'
        '[tenants.students]\nmodels = ["small-*"]\n'
    )
    with pytest.raises(BadInput, match="NOT_SET_HERE"):
        load_models(Settings(models_file=path), environment={})
    assert load_allowed(Settings(models_file=path)) == {"students": ("small-*",)}
    assert load_allowed(Settings()) == {}


def test_the_environments_providers_are_not_mixed_into_a_file(tmp_path: Path) -> None:
    assert [p.name for p in of_file(tmp_path, GOOD, OPENAI_API_KEY=CANARY).policy.providers] == ["local"]


def test_a_key_in_the_file_wants_the_file_to_be_private(tmp_path: Path) -> None:
    text = GOOD + f'    key = "{CANARY}"\n'
    assert of_file(tmp_path, text).policy.providers[0].key == CANARY
    for secret in (text, GOOD + f'    headers = {{ Authorization = "{CANARY}" }}\n'):
        with pytest.raises(BadInput, match="mode 0644") as caught:
            of_file(tmp_path, secret, mode=0o644)
        assert CANARY not in f"{caught.value} {caught.value.data}"


def test_a_key_file_must_be_there_and_private(tmp_path: Path) -> None:
    text = GOOD + '    key_file = "key"\n'
    with pytest.raises(BadInput, match=r"providers.local.key_file.*No such file"):
        of_file(tmp_path, text)
    (tmp_path / "key").write_text(CANARY)
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(BadInput, match="mode 0640"):
        of_file(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "field", "limit"),
    [
        ('provider = "x"', "provider", "one of prices, providers, tenants"),
        ("providers = 3", "providers", "a table"),
        ('[providers."A B"]\nbase_url = "http://h"', "providers.A B", "a name of 1 to 32"),
        ("[providers.a]\n", "providers.a.base_url", "the provider's address"),
        ('[providers.a]\nbase_url = "http://h"', "providers.a.apis", "a list of anthropic-messages"),
        ('[providers.a]\nbase_url = "http://h"\napis = ["openai"]', "providers.a.apis", "a list of"),
        (GOOD + "    model = 3", "providers.local.model", "one of apis"),
        (GOOD.replace('["qwen3-coder", "qwen*"]', '"x"'), "providers.local.models", "a list of models"),
        (GOOD + '    key_env = "NOT_SET"', "providers.local.key_env", "a variable that holds the key"),
        (GOOD + '    key_env = "A"\n    key = "b"', "providers.local.key_env", "the only one of"),
        (GOOD + f'    key = ["{CANARY}"]', "providers.local.key", "a text"),
        (GOOD + '    headers = { "a b" = "c" }', "providers.local.headers", "a header's name"),
        (GOOD + f'    headers = {{ a = "{CANARY}\\n" }}', "providers.local.headers.a", "a text of printable ASCII"),
        ("[tenants.a]\n", "tenants.a.models", "a list of models"),
        ('[prices]\n"a*" = 3', 'prices."a*"', "a table of"),
        ('[prices]\n"a*" = { input = 3 }', 'prices."a*"', "a table with input and output"),
        ('[prices]\n"a*" = { input = -1, output = 1 }', 'prices."a*".input', "dollars"),
        ('[prices]\n"a*" = { input = 1, output = nan }', 'prices."a*".output', "dollars"),
        ('[prices]\n"a*" = { input = 1, output = 1, long = { input = 1 } }', 'prices."a*".long', "above_tokens"),
        ("[", "models_file", "a readable TOML file"),
    ],
)
def test_what_is_wrong_is_said_with_file_field_limit_and_remedy(
    tmp_path: Path, text: str, field: str, limit: str
) -> None:
    with pytest.raises(BadInput) as caught:
        of_file(tmp_path, text)
    said = caught.value
    assert str(tmp_path / "models.toml") in said.message
    assert said.field == field and limit in said.data["limit"] and said.data["remedy"]
    assert CANARY not in f"{said} {said.data}"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"none\.toml cannot be read"):
        load_models(settings(models_file=str(tmp_path / "none.toml")), environment={})


# ---- prices


def test_the_shipped_prices_are_what_the_page_of_the_provider_says() -> None:
    policy = of_environment().policy
    dear = policy.price("claude-opus-5-5-20260922")
    assert dear == Price(4_000_000, 20_000_000, 200_000, 5_000_000)
    sonnet5, sonnet45 = policy.price("claude-sonnet-5"), policy.price("claude-sonnet-4-5-20250929")
    assert sonnet5 is not None and sonnet45 is not None and sonnet5.input < sonnet45.input
    luna = policy.price("gpt-6-luna")
    assert luna is not None
    assert luna.of(ModelUsage(input_tokens=272_000)) == 27_200
    assert luna.of(ModelUsage(input_tokens=272_001)) == 54_401
    assert policy.price("some-model-of-tomorrow") is None


@given(st.decimals(0, 1000, places=8))
def test_dollars_become_micros_rounded_up(dollars: Decimal) -> None:
    micros = model_settings._price({"input": dollars, "output": 0}, "x").input
    assert 0 <= micros - dollars * 1_000_000 < 1


# ---- what is shown


def checks(environment: dict[str, str], **changed: object) -> list[Check]:
    return list(examined(settings(**changed), environment))


def test_doctor_names_providers_and_where_their_keys_are_from() -> None:
    found = checks({"ANTHROPIC_API_KEY": CANARY})
    assert [(check.name, check.verdict) for check in found] == [("models", Verdict.OK)]
    assert "anthropic at https://api.anthropic.com" in found[0].seen and "$ANTHROPIC_API_KEY" in found[0].seen
    assert CANARY not in repr(found)


@pytest.mark.parametrize(
    ("environment", "changed", "verdicts", "word"),
    [
        ({}, {}, ["warn"], "set ANTHROPIC_API_KEY"),
        ({}, {"scripted_model": "demo"}, ["ok"], ""),
        ({"OPENAI_BASE_URL": "http://10.0.0.9", "OPENAI_API_KEY": CANARY}, {"default_model": "x"}, ["warn"], "https"),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:1"}, {}, ["ok", "warn"], "default_model"),
        ({"OPENAI_API_KEY": "a b"}, {}, ["missing"], "put the key there"),
        ({}, {"models_file": "/nowhere.toml"}, ["missing"], "correct it there"),
    ],
)
def test_doctor_says_what_is_missing_and_what_to_do(
    environment: dict[str, str], changed: dict[str, object], verdicts: list[str], word: str
) -> None:
    found = checks(environment, **changed)
    assert [check.verdict for check in found] == verdicts
    assert word in " ".join(check.remedy for check in found)


def test_the_command_line_shows_no_key(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(GOOD + f'    key = "{CANARY}"\n')
    file.chmod(0o600)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CARREL_CONFIG": "/dev/null",
        "CARREL_DATA_DIR": str(tmp_path / "d"),
        "CARREL_DOCKER_HOST": f"unix://{tmp_path}/none.sock",
        "CARREL_MODELS_FILE": str(file),
        "OPENAI_API_KEY": CANARY,
    }
    for verb in (["config"], ["config", "--json"], ["doctor"], ["doctor", "--json"]):
        said = subprocess.run(
            [sys.executable, "-m", "orchestrator", *verb], capture_output=True, text=True, env=environment
        )
        assert "models" in said.stdout
        assert CANARY not in said.stdout + said.stderr


def test_the_example_in_the_page_is_one_that_can_be_read(tmp_path: Path) -> None:
    page = Path(model_settings.__file__).parent / "docs" / "operate" / "models.md"
    examples = [part.split("```")[0] for part in page.read_text().split("```toml\n")[1:]]
    assert examples
    for text in examples:
        (tmp_path / "anthropic-key").write_text(CANARY)
        (tmp_path / "anthropic-key").chmod(0o600)
        text = text.replace("/etc/carrel/", f"{tmp_path}/")
        assert of_file(tmp_path, text, ANTHROPIC_API_KEY=CANARY, OPENAI_API_KEY=CANARY).policy.default_model
