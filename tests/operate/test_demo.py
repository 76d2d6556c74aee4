"""The README's first screen, as a person gets it: set up, serve, an agent mends a bug, a word to it, a patch, stop."""

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
    before = _demos_mounted()
    told = subprocess.run(["make", "demo"], cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    for line in (
        "FAILED (failures=1)",
        "check 5 of 5: a thousand prices agree",
        "You said: “Hello from outside.",
        "+    return sum(prices) * (1 - discount_percent / 100)",
        "succeeded, and its artifact arrived",
    ):
        assert line in told.stdout
    assert _demos_mounted() <= before, "its pool went with it"


def _demos_mounted() -> set[str]:
    return {line for line in Path("/proc/mounts").read_text().splitlines() if "/carrel-demo." in line}
