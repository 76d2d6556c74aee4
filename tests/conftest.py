"""What any test may ask for: a real store, private to its worker process, and a name space of its own inside it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from orchestrator.stores import embedded
from tests import left_running
from tests.inputs import how_many
from tests.place import Place
from tests.sandboxes import build_image

# What a test starts mounts nothing unless the test says so: a pool would outlive a folder that is just removed.
os.environ.setdefault("CARREL_WORKSPACE_STORE", "directory")

_RUN = pytest.StashKey[str]()

# No deadline, no judgement of slowness: on a busy machine either is a test that fails for the time it took.
settings.register_profile(
    "carrel", max_examples=how_many(100), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("carrel")


def _as_ctrl_c(number: int, _: object) -> None:
    """There is an end to see to. The second one ends it as it stands."""
    signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def pytest_configure(config: pytest.Config) -> None:
    """Only where the run is begun: its workers inherit the mark."""
    if not hasattr(config, "workerinput") and left_running.MARK not in os.environ:
        config.stash[_RUN] = left_running.mark()
        signal.signal(signal.SIGTERM, _as_ctrl_c)


def pytest_unconfigure(config: pytest.Config) -> None:
    """A run that went to its end leaves nothing; one that was interrupted did not come to its fixtures' ends."""
    run = config.stash.get(_RUN, "")
    if run:
        for command in left_running.end(run):
            print(f"ended what this run left running: {command[:150]}", file=sys.stderr)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a short name: pytest's own `tmp_path` is too long for unix sockets (107 bytes)."""
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[embedded.Running]:
    """One private server per xdist worker, on a unix socket, AOF `always` as in production."""
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    try:
        yield embedded.ensure(folder)
    finally:
        embedded.shutdown(folder)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis_url(redis_server: embedded.Running) -> str:
    return redis_server.url


@pytest.fixture
def installation() -> str:
    """Prefix of all keys and labels of one test: `carrel:<installation>:…`; no test flushes anything."""
    return f"t{uuid.uuid4().hex[:10]}"


@pytest.fixture(scope="session")
def sandbox_image() -> str:
    """The tag of this checkout's sandbox image; built when it is not there (minutes, once)."""
    return build_image()


def _new_place() -> Place:
    assert os.geteuid() == 0, "boxes are namespaces: these tests need root"
    return Place(Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp")))


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """Shared: a test looks only at executions it made."""
    made = _new_place()
    try:
        made.serve()
        yield made
    finally:
        made.close()


@pytest.fixture
def own_place() -> Iterator[Place]:
    """This test's own. A short lease: a test that kills its server does not wait long for the next one to take over."""
    made = _new_place()
    made.settings = ("driver=scripted", "lease_s=2")
    try:
        made.serve()
        yield made
    finally:
        made.close()
