"""The wheel carries all that `carrel serve` needs without a checkout, and nothing of this machine."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=ROOT, check=True, timeout=60
    )
    (wheel,) = out.glob("carrel-*.whl")
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


def test_all_sources_are_in_it(names: list[str]) -> None:
    for package, folder in (
        ("orchestrator", "orchestrator"),
        ("sandbox_init", "sandbox-image/sandbox_init"),
        ("agent_harness", "agent-harness/agent_harness"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".lua"} and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / folder)}" in names


def test_the_image_can_be_built_from_it(names: list[str]) -> None:
    context = {
        str(path.relative_to(ROOT / "sandbox-image"))
        for path in (ROOT / "sandbox-image").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"orchestrator/_image/{name}" for name in context} <= set(names)


def test_nothing_generated_is_in_it(names: list[str]) -> None:
    assert not [name for name in names if "__pycache__" in name or name.startswith(("build/", "tests/"))]


def test_the_command_is_declared(names: list[str]) -> None:
    assert any(name.endswith("entry_points.txt") for name in names)
