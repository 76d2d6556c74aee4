"""Which model providers there are, what their models cost and who may use them: read from a TOML file (`models_file`),
or, without one, from the variables everybody sets (ANTHROPIC_API_KEY, OPENAI_API_KEY). Asks no provider anything.

The file's form is in docs/operate/models.md. A key comes from a variable or a file of its own, and from the models file
only where that is for its owner's eyes; no message ever holds one.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from orchestrator.errors import BadInput
from orchestrator.models import MTOK, ModelApi, ModelPolicy, Price, Provider
from orchestrator.settings import Settings

ANTHROPIC_URL: Final = "https://api.anthropic.com"
OPENAI_URL: Final = "https://api.openai.com"
ANTHROPIC_MODEL: Final = "claude-sonnet-5-5"  # where an execution names none, at the provider's own address
OPENAI_MODEL: Final = "gpt-6.2-sol"
OPENAI_APIS: Final = (ModelApi.RESPONSES, ModelApi.CHAT)  # its newer models call tools by responses only
DOLLARS_MAX: Final = 100_000
PROVIDER_FIELDS: Final = {"base_url", "apis", "models", "headers", "key", "key_env", "key_file"}
PRICE_FIELDS: Final = {"input", "output", "cache_read", "cache_write"}
SECRET_HEADERS: Final = {"authorization", "x-api-key", "api-key", "cookie"}


@dataclass(frozen=True, slots=True)
class Models:
    """`origin`: where all this is from, in words. `keys`: by provider, where its key is from, in words; no key."""

    policy: ModelPolicy
    origin: str
    keys: Mapping[str, str]


def load_models(settings: Settings, *, environment: Mapping[str, str] | None = None) -> Models:
    """Raises BadInput naming file, field, limit and remedy; a key that is named and not there is such an error."""
    environment = os.environ if environment is None else environment
    prices = _shipped_prices()
    allowed: Mapping[str, tuple[str, ...]] = {}
    if settings.models_file is None:
        providers, keys, fallback = _of_environment(environment)
        origin = "the environment" if providers else "nowhere"
    else:
        file = _File(settings.models_file)
        providers, keys = file.providers(environment)
        prices = {**file.prices(), **{name: price for name, price in prices.items() if name not in file.content_prices}}
        allowed = file.tenants()
        origin = str(settings.models_file)
        named = [model for provider in providers for model in provider.models if not set(model) & set("*?[")]
        fallback = named[0] if named else ""
    policy = ModelPolicy(
        providers=providers,
        prices=prices,
        allowed=allowed,
        default_model=settings.default_model or fallback,
        default_api=ModelApi(settings.default_model_api) if settings.default_model_api else None,
        request_bytes=settings.model_request_limit_bytes,
        concurrency=settings.model_concurrency,
        web_tools=settings.model_web_tools,
    )
    return Models(policy, origin, keys)


def load_allowed(settings: Settings) -> Mapping[str, tuple[str, ...]]:
    """Which tenant may use which models, as `ModelPolicy.allowed`, and nothing else: an api process needs no key, and
    reads none. Raises BadInput."""
    return {} if settings.models_file is None else _File(settings.models_file).tenants()


# ---- without a file ------------------------------------------------------------------------------------------------


def _of_environment(environment: Mapping[str, str]) -> tuple[tuple[Provider, ...], dict[str, str], str]:
    """Providers, where their keys are from, and the model for executions that name none."""
    found: list[Provider] = []
    keys: dict[str, str] = {}
    model = ""
    for name, own_url, own_model, apis in (
        ("anthropic", ANTHROPIC_URL, ANTHROPIC_MODEL, (ModelApi.MESSAGES,)),
        ("openai", OPENAI_URL, OPENAI_MODEL, OPENAI_APIS),
    ):
        key_name, url_name = f"{name.upper()}_API_KEY", f"{name.upper()}_BASE_URL"
        key, url = environment.get(key_name, ""), environment.get(url_name, "")
        if not key and not url:
            continue
        key = _key(key, f"${key_name}") if key else ""
        base_url = _base_url(url or own_url, f"${url_name}", f"correct or unset {url_name}")
        # Who moved the address serves what only they know; and by which api it is whole, too: chat is what all have.
        moved = bool(url) and base_url != own_url
        patterns = ("*",) if moved or name == "openai" else ("claude-*",)
        found.append(Provider(name, base_url, tuple(reversed(apis)) if moved else apis, key, patterns))
        keys[name] = f"key from ${key_name}" if key else "no key"
        model = model or ("" if moved else own_model)
    return tuple(found), keys, model


def _shipped_prices() -> dict[str, Price]:
    text = resources.files("orchestrator").joinpath("model_prices.toml").read_text()
    return {name: _price(one, name) for name, one in tomllib.loads(text, parse_float=Decimal)["prices"].items()}


# ---- the file ------------------------------------------------------------------------------------------------------


class _File:
    """A models file as it was read; every complaint names it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.mode = os.fstat(file.fileno()).st_mode & 0o777
                content = tomllib.load(file, parse_float=Decimal)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as failure:
            raise BadInput(
                f"{path} cannot be read: {failure}",
                field="models_file",
                limit="a readable TOML file",
                remedy="correct it there, or take `models_file` out of the settings",
            ) from failure
        self._only(content, {"providers", "prices", "tenants"}, "")
        self.content = content
        self.content_prices = self._table(content, "prices", "")

    def providers(self, environment: Mapping[str, str]) -> tuple[tuple[Provider, ...], dict[str, str]]:
        found: list[Provider] = []
        keys: dict[str, str] = {}
        for name in self._table(self.content, "providers", ""):
            at = f"providers.{name}"
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name):
                self._wrong(at, name, "a name of 1 to 32 of a-z, 0-9 and -")
            table = self._table(self.content["providers"], name, "providers")
            self._only(table, PROVIDER_FIELDS, at)
            key, keys[name] = self._key_of(table, at, environment)
            url = table.get("base_url")
            if not isinstance(url, str):
                self._wrong(f"{at}.base_url", url, "the provider's address (https://name), without /v1")
            found.append(
                Provider(
                    name=name,
                    base_url=_base_url(url, f"{self.path}: {at}.base_url", f"correct it in {self.path}"),
                    apis=self._apis(table, at),
                    key=key,
                    models=self._patterns(table, "models", at, ("*",)),
                    headers=self._headers(table, at),
                )
            )
        return tuple(found), keys

    def prices(self) -> dict[str, Price]:
        found: dict[str, Price] = {}
        for name, one in self.content_prices.items():
            try:
                found[name] = _price(one, name)
            except BadInput as wrong:
                raise BadInput(
                    f"{self.path}: {wrong.message}",
                    field=str(wrong.data.get("field", "")),
                    limit=str(wrong.data.get("limit", "")),
                    remedy=f"correct it in {self.path}",
                ) from None
        return found

    def tenants(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for name in self._table(self.content, "tenants", ""):
            table = self._table(self.content["tenants"], name, "tenants")
            self._only(table, {"models"}, f"tenants.{name}")
            found[name] = self._patterns(table, "models", f"tenants.{name}", None)
        return found

    def _apis(self, table: Mapping[str, Any], at: str) -> tuple[ModelApi, ...]:
        known = ", ".join(ModelApi)
        given = table.get("apis")
        if not isinstance(given, list) or not given or not all(one in set(ModelApi) for one in given):
            self._wrong(f"{at}.apis", given, f"a list of {known}; the one it is best at first")
        return tuple(dict.fromkeys(ModelApi(one) for one in given))

    def _patterns(
        self, table: Mapping[str, Any], name: str, at: str, default: tuple[str, ...] | None
    ) -> tuple[str, ...]:
        given = table.get(name)
        if given is None and default is not None:
            return default
        if not isinstance(given, list) or not all(isinstance(one, str) and one for one in given):
            self._wrong(f"{at}.{name}", given, "a list of models' names, in which * stands for anything")
        return tuple(given)

    def _headers(self, table: Mapping[str, Any], at: str) -> dict[str, str]:
        given = self._table(table, "headers", at)
        for name, value in given.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", name):
                self._wrong(f"{at}.headers", name, "a header's name")
            if not isinstance(value, str) or not re.fullmatch(r"[\x20-\x7e]{0,4096}", value):
                self._wrong(f"{at}.headers.{name}", None, "a text of printable ASCII")
            if name.lower() in SECRET_HEADERS:
                self._private(f"{at}.headers.{name}")
        return {name.lower(): value for name, value in given.items()}

    def _key_of(self, table: Mapping[str, Any], at: str, environment: Mapping[str, str]) -> tuple[str, str]:
        named = [field for field in ("key_env", "key_file", "key") if field in table]
        if not named:
            return "", "no key"
        field = named[0]
        if len(named) > 1:
            self._wrong(f"{at}.{field}", None, "the only one of key_env, key_file and key")
        given = table[field]
        if not isinstance(given, str) or not given:
            self._wrong(f"{at}.{field}", None, "a text")
        if field == "key":
            self._private(f"{at}.key")
            return _key(given, f"{self.path}: {at}.key"), f"key from {self.path}"
        if field == "key_env":
            if not environment.get(given):
                raise BadInput(
                    f"{self.path}: {at}.key_env: the variable {given} is not set",
                    field=f"{at}.key_env",
                    limit="a variable that holds the key",
                    remedy=f"set {given} where carrel is started, or take the provider out of {self.path}",
                )
            return _key(environment[given], f"${given}"), f"key from ${given}"
        path = self.path.parent / Path(given).expanduser()
        return _key(_secret_file(path, f"{self.path}: {at}.key_file"), str(path)), f"key from {path}"

    def _private(self, field: str) -> None:
        if self.mode & 0o077:
            raise BadInput(
                f"{self.path}: {field}: the file holds a secret and others may read it (mode {self.mode:04o})",
                field=field,
                limit="mode 0600",
                remedy=f"chmod 600 {self.path}, or use key_env or key_file",
            )

    def _table(self, content: Mapping[str, Any], name: str, at: str) -> dict[str, Any]:
        given = content.get(name, {})
        if not isinstance(given, dict):
            self._wrong(f"{at}.{name}".lstrip("."), given, "a table")
        return given

    def _only(self, table: Mapping[str, Any], known: set[str], at: str) -> None:
        for name in table:
            if name not in known:
                self._wrong(f"{at}.{name}".lstrip("."), None, "one of " + ", ".join(sorted(known)))

    def _wrong(self, field: str, value: object, must_be: str) -> NoReturn:
        seen = "" if value is None else f"{str(value)[:80]!r} "
        raise BadInput(
            f"{self.path}: {field}: {seen}is not {must_be}",
            field=field,
            limit=must_be,
            remedy=f"correct it in {self.path} (docs/operate/models.md)",
        )


# ---- values --------------------------------------------------------------------------------------------------------


def _price(given: object, name: str) -> Price:
    """Where no price of the cache is said, it is taken as input: never too little."""
    at = f'prices."{name}"'
    if not isinstance(given, dict) or not PRICE_FIELDS | {"long"} >= set(given):
        _wrong_price(at, "a table of " + ", ".join(sorted(PRICE_FIELDS)) + " (dollars for a million tokens), long")
    plain = {field: value for field, value in given.items() if field != "long"}
    micros = {field: _micros(value, f"{at}.{field}") for field, value in plain.items()}
    if not {"input", "output"} <= set(micros):
        _wrong_price(at, "a table with input and output, in dollars for a million tokens")
    least = micros["input"]
    price = Price(least, micros["output"], micros.get("cache_read", least), micros.get("cache_write", least))
    if "long" not in given:
        return price
    long = dict(given["long"]) if isinstance(given["long"], dict) else {}
    above = long.pop("above_tokens", None)
    if isinstance(above, bool) or not isinstance(above, int) or above < 1 or "long" in long:
        _wrong_price(f"{at}.long", "a table of above_tokens and the prices from there on")
    return replace(price, long=_price(long, f"{name}.long"), long_above_tokens=above)


def _micros(value: object, at: str) -> int:
    number = Decimal(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else Decimal("nan")
    if not number.is_finite() or not 0 <= number <= DOLLARS_MAX:
        _wrong_price(at, f"dollars for a million tokens, from 0 to {DOLLARS_MAX}")
    return math.ceil(number * MTOK)


def _wrong_price(at: str, must_be: str) -> NoReturn:
    raise BadInput(f"{at}: it is not {must_be}", field=at, limit=must_be)


def _base_url(url: str, where: str, remedy: str) -> str:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.username or parts.password or parts.query or parts.fragment or re.search(r"\s", url):
        # Not shown: some write their key into it.
        raise BadInput(
            f"{where}: it is not an address such as https://name, without user, query and /v1",
            field=where,
            limit="http:// or https://, a host, a path if any",
            remedy=remedy,
        )
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _key(value: str, where: str) -> str:
    key = value.strip()
    if not re.fullmatch(r"[\x21-\x7e]{1,4096}", key):
        raise BadInput(
            f"{where}: the key is empty, or has a character that no header carries",
            field=where,
            limit="1 to 4096 characters of printable ASCII, no space",
            remedy="put the key there, and nothing else",
        )
    return key


def _secret_file(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            content = file.read(8192)
    except OSError as failure:
        raise BadInput(
            f"{where}: {failure}",
            field=where,
            limit="a file that holds the key",
            remedy=f"put the key into {path}, mode 0600, for the user carrel runs as",
        ) from failure
    if mode & 0o077:
        raise BadInput(
            f"{where}: {path} holds a key and others may read it (mode {mode:04o})",
            field=where,
            limit="mode 0600",
            remedy=f"chmod 600 {path}",
        )
    return content.decode("ascii", "replace")
