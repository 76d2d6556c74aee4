"""What docs/operate ships works as it stands: units that let a drain finish, variables that are settings."""

from __future__ import annotations

import re
from configparser import RawConfigParser
from pathlib import Path

import pytest

from orchestrator.configuration import load, unknown_variables

OPERATE = Path(__file__).parents[2] / "orchestrator" / "docs" / "operate"
UNITS = sorted(OPERATE.glob("*.service"))
SHIPPED = [*UNITS, OPERATE / "compose.yaml"]


def unit(path: Path) -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return parser


def test_all_three_ways_to_run_have_a_unit() -> None:
    verbs = {unit(path)["Service"]["ExecStart"].split()[-1] for path in UNITS}
    assert verbs == {"serve", "api", "worker"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_variable_is_a_setting_with_a_good_value(path: Path) -> None:
    found = dict(re.findall(r"(CARREL_[A-Z_]+)(?:=|: )(\S+)", path.read_text()))
    assert found
    assert unknown_variables(found) == []
    written = {name: re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", value) for name, value in found.items()}
    load(environment={"CARREL_CONFIG": "/dev/null", **written})


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_stop_lets_the_drain_finish(path: Path) -> None:
    service = unit(path)["Service"]
    grace_s = load(environment={"CARREL_CONFIG": "/dev/null"}).drain_grace_s
    # The embedded store may take 15 s more to close its file.
    assert int(service["TimeoutStopSec"]) >= grace_s + 15
    assert service["Restart"] == "always"
    if service["ExecStart"].endswith("serve"):  # its store lives in the same unit and must not get SIGTERM with it
        assert service["KillMode"] == "mixed"


def test_the_composed_store_keeps_the_promises() -> None:
    told = (OPERATE / "compose.yaml").read_text()
    for promise in ("--appendonly yes", "--appendfsync always", '--save ""', "--maxmemory-policy noeviction"):
        assert promise in told
