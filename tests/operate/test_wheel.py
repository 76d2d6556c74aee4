"""The wheel carries all that `carrel serve` needs without a checkout, and nothing of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)], cwd=ROOT, check=True, timeout=60
    )
    (found,) = out.glob("carrel-*.whl")
    return found


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


@pytest.fixture
def installed(wheel: Path, tmp_path: Path, short_dir: Path) -> Iterator[dict[str, str]]:
    """An environment in which `python -m orchestrator` is the wheel's, not the checkout's."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    yield {
        **{name: value for name, value in os.environ.items() if not name.startswith("CARREL_")},
        "PYTHONPATH": str(tmp_path / "site"),
        "HOME": str(short_dir),
        "CARREL_CONFIG": "/dev/null",
        "CARREL_DATA_DIR": str(short_dir / "d"),
        "CARREL_LOG_FORMAT": "json",
        "CARREL_PORT": "0",
        "CARREL_DRIVER": "scripted",
        "CARREL_WORKSPACE_STORE": "directory",
    }


def test_all_sources_are_in_it(names: list[str]) -> None:
    for package, folder in (
        ("orchestrator", "orchestrator"),
        ("sandbox_init", "sandbox-image/sandbox_init"),
        ("agent_harness", "agent-harness/agent_harness"),
        ("scripted_model", "agent-harness/scripted_model"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".lua", ".toml", ".json"} and "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / folder)}" in names


def test_the_image_can_be_built_from_it(names: list[str]) -> None:
    context = {
        str(path.relative_to(ROOT / "sandbox-image"))
        for path in (ROOT / "sandbox-image").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {f"orchestrator/_image/{name}" for name in context} <= set(names)


def test_it_builds_the_same_image_as_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """The bundled agent goes in from where each has it."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    digests = {
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import runpy, sys; sys.path.insert(0, sys.argv[1]); its = runpy.run_path(sys.argv[1] + '/build');"
                "import harness_image; files = [its['context_files'](), *map(harness_image._files, its['known']())];"
                "print([its['digest']('b', one) for one in files])",
                folder,
            ],
            cwd="/",
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for folder in (ROOT / "sandbox-image", tmp_path / "orchestrator" / "_image")
    }
    assert len(digests) == 1


def test_nothing_generated_is_in_it(names: list[str]) -> None:
    assert not [name for name in names if "__pycache__" in name or name.startswith(("build/", "tests/"))]


@pytest.mark.root
def test_it_serves_and_runs_without_a_checkout(installed: dict[str, str], tmp_path: Path) -> None:
    carrel = [sys.executable, "-m", "orchestrator"]
    told = subprocess.run(
        [sys.executable, "-c", "import orchestrator; print(orchestrator.__file__)"],
        env=installed, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told.stdout.startswith(str(tmp_path / "site"))
    log = tmp_path / "serve.log"
    with log.open("wb") as out, subprocess.Popen([*carrel, "serve"], env=installed, cwd=tmp_path, stderr=out) as server:
        try:
            url = ""
            while not url and server.poll() is None:
                url = "".join(re.findall(r'"url": "(http://[^"]+)"', log.read_text()))
            assert url, log.read_text()
            ran = subprocess.run(
                [*carrel, "--url", url, "run", "-q", "--", "sh", "-c", "echo here; exit 3"],
                env=installed, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(30)
    assert (ran.stdout, ran.returncode, code) == ("here\n", 3, 0), ran.stderr + log.read_text()


def test_it_builds_the_image_without_a_checkout(installed: dict[str, str], tmp_path: Path) -> None:
    """The script in the wheel runs: with an engine it names the image, without one it says what is missing."""
    command = [sys.executable, "-m", "orchestrator", "image", "build"]
    built = subprocess.run(command, env=installed, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stdout[:15]) == (0, "carrel/sandbox:"), built.stderr
    away = {**installed, "DOCKER_HOST": f"unix://{tmp_path}/no-engine.sock"}
    refused = subprocess.run(command, env=away, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (69, "")
    assert "no Docker engine answers" in refused.stderr
