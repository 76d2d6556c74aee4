"""Acceptance: the test-suite of a real public project (h11, from its source distribution) runs in a sandbox that has no
network, with the files and pytest's own wheels uploaded. Two clients watch, one of them over 20 connections; both see
the same events 1…N. The report it leaves is downloaded, and its counts are those of a run outside."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from contextlib import aclosing
from pathlib import Path

import pytest

from orchestrator.client import AsyncClient, Patience
from orchestrator.events import Event
from tests.place import Place
from tests.real_project import SDIST, fetch

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(600)]

RECONNECTS = 20

TASK = """
set -e
tar -xzf h11-0.16.0.tar.gz
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check --no-index --find-links wheels pytest
cd h11-0.16.0
export PYTHONUNBUFFERED=1
exec ../venv/bin/python -m pytest h11 -v -p no:cacheprovider --junitxml="$ARTIFACTS_DIR/junit.xml"
"""


@pytest.fixture(scope="module")
def real_files() -> tuple[Path, list[Path]]:
    """(the source distribution, pytest and its wheels)."""
    return fetch()


def _counts(report: Path) -> dict[str, int]:
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    return {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}


def _outside(sdist: Path, wheels: list[Path], folder: Path) -> dict[str, int]:
    """The same suite, run on this machine by a Python of its own."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True, timeout=120)
    python = str(folder / "venv" / "bin" / "python")
    find = ["--no-index", "--find-links", str(wheels[0].parent)]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *find, "pytest"], check=True, timeout=120)
    subprocess.run(
        [python, "-m", "pytest", "h11", "-q", "-p", "no:cacheprovider", f"--junitxml={folder}/junit.xml"],
        cwd=folder / SDIST.removesuffix(".tar.gz"), check=True, timeout=300, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return _counts(folder / "junit.xml")


async def _steady(url: str, token: str, id: str) -> list[Event]:
    async with AsyncClient(url, token) as client:
        return [event async for event in client.execution(id).events()]


async def _restless(url: str, token: str, id: str) -> tuple[list[Event], int]:
    """Leaves after a few events and comes back, RECONNECTS times, each time as a new client; then stays to the end."""
    seen: list[Event] = []
    rng = random.Random(11)
    for _ in range(RECONNECTS):
        stay = rng.randint(1, 4)
        async with AsyncClient(url, token) as client:
            after = str(seen[-1].seq) if seen else ""
            async with aclosing(client.execution(id).events(after=after)) as events:
                async for event in events:
                    seen.append(event)
                    stay -= 1
                    if not stay:
                        break
    async with AsyncClient(url, token) as client:
        seen += [event async for event in client.execution(id).events(after=str(seen[-1].seq))]
    return seen, RECONNECTS


async def test_the_test_suite_of_h11(live: Place, real_files: tuple[Path, list[Path]], tmp_path: Path) -> None:
    sdist, wheels = real_files
    async with AsyncClient(live.url, live.token, patience=Patience(limit_s=30)) as client:
        files = [await client.upload(sdist, sdist.name)]
        files += [await client.upload(wheel, f"wheels/{wheel.name}") for wheel in wheels]
        execution = await client.submit(task=TASK, files=files, name="h11", resources={"memory_bytes": 1 << 30})
        steady, (restless, reconnects) = await asyncio.gather(
            _steady(live.url, live.token, execution.id), _restless(live.url, live.token, execution.id)
        )
        record = await execution.wait()
        output = b"".join(event.body for event in steady if event.body is not None).decode()
        assert record.outcome is not None and record.outcome.exit_code == 0, output[-3000:]

        assert [event.seq for event in steady] == list(range(1, record.tail + 1))
        assert restless == steady
        assert reconnects == 20 and record.tail > RECONNECTS

        listed = {one.path: one for one in await execution.artifacts.list()}
        report = await execution.artifacts.download("junit.xml", tmp_path / "inside.xml")
        assert hashlib.sha256(report.read_bytes()).hexdigest() == listed["junit.xml"].sha256

    inside = _counts(report)
    outside = await asyncio.to_thread(_outside, sdist, wheels, tmp_path / "outside")
    assert inside == outside
    assert inside["tests"] > 50 and inside["failures"] == inside["errors"] == 0
