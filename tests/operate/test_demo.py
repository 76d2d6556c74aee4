"""The README's first screen, as a person gets it: set up, serve, a container, a word to it, its file, stop."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.docker
@pytest.mark.timeout(600)
def test_make_demo(tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("CARREL_", "MAKE"))}
    told = subprocess.run(["make", "demo"], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    for line in ("step 8 of 8", "you said: hello from outside", "succeeded, and its artifact arrived"):
        assert line in told.stdout
