"""Boxes for the tests of init: a namespace each by default, a container of the real image where that is the point."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.sandbox_init.boxes import Box, in_namespace, make_slot, remove_slot, wait_for
from tests.sandbox_init.containers import ContainerBox, Make, create

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slot() -> Iterator[Path]:
    made = make_slot()
    yield made
    remove_slot(made)


@pytest.fixture
def box(slot: Path) -> Iterator[Box]:
    with in_namespace(slot) as one:
        yield one


@pytest.fixture(scope="session")
def image() -> str:
    """The tag of the image of this very tree, built if need be; one builder at a time."""
    lock = Path("/tmp/carrel-test-image.lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        built = subprocess.run(
            [sys.executable, str(ROOT / "sandbox-image" / "build")], stdout=subprocess.PIPE, text=True, check=True
        )
    return built.stdout.strip()


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def make_box(engine: docker.DockerClient, image: str) -> Iterator[Make]:
    """Containers with their slots; all gone afterwards."""
    slots: list[Path] = []
    made: list[ContainerBox] = []

    def make(**more: Any) -> ContainerBox:
        slot = make_slot()
        slots.append(slot)
        one = ContainerBox(slot, create(engine, image, slot, **more))
        made.append(one)
        wait_for((slot / "ctl" / "init.sock").exists, "init listens")
        return one

    yield make
    for one in made:
        one.container.remove(force=True)
    for slot in slots:
        remove_slot(slot)
