"""One server for all of a worker's tests; and one for a test that ends its server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.place import Place


def _new() -> Place:
    assert os.geteuid() == 0, "boxes are namespaces: these tests need root"
    return Place(Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp")))


@pytest.fixture(scope="session")
def place() -> Iterator[Place]:
    """Shared: a test looks only at executions it made."""
    made = _new()
    try:
        made.serve()
        yield made
    finally:
        made.close()


@pytest.fixture
def own_place() -> Iterator[Place]:
    """This test's own. A short lease: a test that kills its server does not wait long for the next one to take over."""
    made = _new()
    made.settings = ("driver=scripted", "lease_s=2")
    try:
        made.serve()
        yield made
    finally:
        made.close()
