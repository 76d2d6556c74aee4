"""Settings: file < environment < flags; each knows its origin; a bad one says which, where from, and what to do."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import settings
from orchestrator.configuration import load, unknown_variables
from orchestrator.errors import BadInput
from orchestrator.settings import SETTINGS

NOWHERE = {"CARREL_CONFIG": "/dev/null"}


def test_file_then_environment_then_flags(tmp_path: Path) -> None:
    file = tmp_path / "carrel.toml"
    file.write_text('port = 1\nlease_s = 3\ninstallation = "from-file"\nallowed_hosts = ["a", "b"]\n')
    environment = {"CARREL_PORT": "2", "CARREL_LEASE_S": "4"}
    found = load({"port": 3, "log_level": None}, environment=environment, file=file)
    assert (found.port, found.lease_s, found.installation, found.allowed_hosts) == (3, 4.0, "from-file", ("a", "b"))
    names = ("port", "lease_s", "installation", "log_level")
    assert [found.origin[name] for name in names] == ["flag", "$CARREL_LEASE_S", str(file), "default"]


def test_empty_variables_set_nothing() -> None:
    assert load(environment={**NOWHERE, "CARREL_PORT": ""}).port == 8374


def test_our_docker_host_beats_dockers_own() -> None:
    environment = {**NOWHERE, "DOCKER_HOST": "unix:///theirs"}
    assert load(environment=environment).docker_host == "unix:///theirs"
    assert load(environment={**environment, "CARREL_DOCKER_HOST": "unix:///ours"}).docker_host == "unix:///ours"


@pytest.mark.parametrize(
    ("written", "bytes_"), [("64m", 64 << 20), ("2G", 2 << 30), ("1GiB", 1 << 30), (70000000, 70000000)]
)
def test_sizes(written: object, bytes_: int) -> None:
    assert load({"default_memory_bytes": written}, environment=NOWHERE).default_memory_bytes == bytes_


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "http"),
        ("port", True),
        ("lease_s", "0"),
        ("lease_s", "nan"),
        ("lease_s", "inf"),
        ("installation", "A b"),
        ("installation", "ok\n"),
        ("redis_url", "localhost:6379"),
        ("default_memory_bytes", "1 m"),
        ("default_memory_bytes", "-1"),
        ("driver", "podman"),
        ("allowed_hosts", 3),
        ("egress_private_allow", "10.1.0.5/16"),  # bits beyond the mask: which was meant?
        ("egress_private_allow", "internal.example"),
        ("data_dir", "a\0b"),
    ],
)
def test_a_bad_value_names_setting_origin_and_remedy(name: str, value: object) -> None:
    with pytest.raises(BadInput) as caught:
        load({name: value}, environment=NOWHERE)
    assert caught.value.field == name
    assert caught.value.data["limit"] == SETTINGS[name].metadata["rule"].words
    assert name in caught.value.message
    assert "from flag" in caught.value.message
    assert "correct it" in caught.value.data["remedy"]


def test_an_unknown_key_in_the_file_is_an_error_with_a_guess(tmp_path: Path) -> None:
    file = tmp_path / "carrel.toml"
    file.write_text("leases = 3\n")
    with pytest.raises(BadInput, match="did you mean lease_s"):
        load(environment={}, file=file)


def test_a_broken_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    file = tmp_path / "carrel.toml"
    with pytest.raises(BadInput, match="is not there"):
        load(environment={"CARREL_CONFIG": str(file)})
    file.write_text("port = \n")
    with pytest.raises(BadInput, match="cannot be read"):
        load(environment={"CARREL_CONFIG": str(file)})


def test_misspelt_variables_are_found() -> None:
    assert unknown_variables({"CARREL_PROT": "1", "CARREL_PORT": "1", "CARREL_URL": "x", "HOME": "/"}) == [
        "CARREL_PROT"
    ]


def test_every_default_obeys_its_own_rule() -> None:
    found = load(environment=NOWHERE)
    for name, declared in SETTINGS.items():
        value = getattr(found, name)
        written = list(value) if isinstance(value, tuple) else "" if value is None else value
        again = declared.metadata["rule"].parse(written)
        assert again == value, name


@given(st.sampled_from(sorted(SETTINGS)), st.text(max_size=20))
def test_any_text_is_a_value_or_a_clear_no(name: str, written: str) -> None:
    try:
        value = getattr(load({name: written}, environment=NOWHERE), name)
    except BadInput as no:
        assert no.field == name
    else:
        assert not (isinstance(value, float) and not math.isfinite(value))


def test_every_setting_does_something() -> None:
    """Each is handed on by assembly, or looked at by doctor; one that nobody reads is a lie in the table."""
    room = Path(settings.__file__).parent
    read = set()
    for path in (
        room / name for name in ("settings.py", "model_settings.py", "assembly.py", "leftovers.py", "diagnosis.py")
    ):
        read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert set(SETTINGS) - read == set()


def test_the_page_is_this_table() -> None:
    page = Path(settings.__file__).parent / "docs" / "operate" / "settings.md"
    assert page.read_text() == settings.table(), (
        "run: python -m orchestrator.settings > orchestrator/docs/operate/settings.md"
    )
