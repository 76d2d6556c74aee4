"""A real `carrel serve` on a real engine, with this checkout's image; its own store, directory, port and label."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.place import Place


@pytest.fixture(scope="session")
def live(sandbox_image: str) -> Iterator[Place]:
    made = Place(Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp")), settings=(f"image={sandbox_image}", "lease_s=5"))
    try:
        made.serve()
        yield made
    finally:
        made.close()
