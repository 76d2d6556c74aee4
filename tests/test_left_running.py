"""A run that is interrupted leaves nothing that runs: not the servers of its fixtures, nor their stores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import left_running
from tests.place import ROOT, until

pytestmark = pytest.mark.root

INTERRUPTED = """
from pathlib import Path
import time

def test_it_is_at_work(place):
    Path({begun!r}).write_text(place.url)
    time.sleep(1000)
"""


def test_an_interrupted_run_ends_its_servers(tmp_path: Path) -> None:
    begun, inside = tmp_path / "begun", tmp_path / "test_interrupted.py"
    environment = {name: value for name, value in os.environ.items() if name != left_running.MARK}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    run = f"of-{os.getpid()}"
    inside.write_text(INTERRUPTED.format(begun=str(begun)))
    plugins = ("-p", "tests.conftest", "-p", "no:cacheprovider", "-p", "no:valkey")
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            "1",
            "-c",
            "pyproject.toml",
            "--rootdir",
            ".",
            *plugins,
            str(inside),
        ],
        cwd=ROOT,
        env={**environment, "THE_INNER_RUN": run},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as program:
        until(begun.exists, "its server serves")
        assert any(" serve " in command for command in running(run))
        program.terminate()  # it alone, as what limits its time does
    assert running(run) == []


def running(run: str) -> list[str]:
    """Command lines of all that has this run's name in its environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"THE_INNER_RUN={run}".encode() in (entry / "environ").read_bytes().split(
                b"\0"
            ):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found
