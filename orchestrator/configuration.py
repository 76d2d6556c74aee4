"""The effective settings of a process: read from carrel.toml, then the environment, then flags; checked; each with its
origin. The only reader of environment and configuration files on the server's side. Knows no setting by name."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from orchestrator.errors import BadInput
from orchestrator.rules import Rule
from orchestrator.settings import PREFIX, SETTINGS, Settings, default_shown

# Read by the client, or by tests and make; listed so that a misspelt setting can be told from them.
OTHER_VARIABLES: Final = frozenset({"CARREL_CONFIG", "CARREL_URL", "CARREL_TOKEN", "CARREL_PROFILE", "CARREL_CRASH_AT"})


def load(
    flags: Mapping[str, object] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """The effective settings: defaults < file < environment < flags (a flag that is None was not given).

    `file`: else $CARREL_CONFIG, else /etc/carrel/carrel.toml, else ~/.config/carrel/carrel.toml; never the current
    directory, which may be anybody's. Raises BadInput naming the setting, where it was set, its limit and the remedy.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, object] = {}
    origin = dict.fromkeys(SETTINGS, "default")

    def take(name: str, value: object, where: str) -> None:
        values[name] = _checked(name, value, where)
        origin[name] = where

    path, table = _read_file(file, environment)
    for name, value in table.items():
        if name not in SETTINGS:
            close = difflib.get_close_matches(name, SETTINGS, 1)
            raise BadInput(
                f"{path}: there is no setting {name}" + (f"; did you mean {close[0]}?" if close else ""),
                field=name,
                limit="a setting of docs/operate/settings.md",
                remedy=f"rename or remove it in {path}",
            )
        take(name, value, str(path))
    for name, declared in SETTINGS.items():
        for variable in (declared.metadata["also"], PREFIX + name.upper()):
            if variable and environment.get(variable):
                take(name, environment[variable], f"${variable}")
    for name, value in (flags or {}).items():
        if value is not None:
            take(name, value, "flag")
    return Settings(**cast(dict[str, Any], values), origin=MappingProxyType(origin))


def unknown_variables(environment: Mapping[str, str] | None = None) -> list[str]:
    """CARREL_… variables that set nothing: a misspelt one is silent otherwise. `carrel doctor` shows them."""
    known = {PREFIX + name.upper() for name in SETTINGS} | OTHER_VARIABLES
    return sorted(
        n for n in (os.environ if environment is None else environment) if n.startswith(PREFIX) and n not in known
    )


def _read_file(file: Path | None, environment: Mapping[str, str]) -> tuple[Path | None, Mapping[str, object]]:
    named = file or (Path(environment["CARREL_CONFIG"]) if environment.get("CARREL_CONFIG") else None)
    places = [named] if named else [Path("/etc/carrel/carrel.toml"), Path("~/.config/carrel/carrel.toml").expanduser()]
    for path in places:
        try:
            return path, tomllib.loads(path.read_text())
        except FileNotFoundError:
            if named:
                raise BadInput(
                    f"the configuration file {path} is not there",
                    field="CARREL_CONFIG",
                    limit="a readable TOML file",
                    remedy="create it, or unset CARREL_CONFIG",
                ) from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as failure:
            raise BadInput(
                f"{path} cannot be read: {failure}",
                field=str(path),
                limit="a readable TOML file",
                remedy="correct it there",
            ) from failure
    return None, {}


def _checked(name: str, value: object, where: str) -> object:
    rule: Rule = SETTINGS[name].metadata["rule"]
    try:
        return rule.parse(value)
    except (ValueError, OverflowError):
        remedy = f"correct it ({where}), or take it out for the default: {default_shown(name)}"
        raise BadInput(
            f"setting {name}, from {where}: {value!r} is not {rule.words}; {remedy}",
            field=name,
            limit=rule.words,
            remedy=remedy,
        ) from None
