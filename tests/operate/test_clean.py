"""`make clean` ends the sandboxes of one installation, and no other container."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.docker


@pytest.fixture
def engine() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


def test_only_sandboxes_of_this_installation_go(engine: docker.DockerClient, installation: str) -> None:
    image = os.environ.get("CARREL_IMAGE", "carrel/sandbox:latest")
    made = {}
    for name, labels in {
        "ours": {"carrel.installation": installation, "carrel.sandbox": "sbx_1"},
        "another installation's": {"carrel.installation": f"{installation}x", "carrel.sandbox": "sbx_2"},
        "no sandbox": {"carrel.installation": installation},
        "a stranger": {"test": installation},
    }.items():
        made[name] = engine.containers.create(image, ["true"], entrypoint=[], labels=labels, network_disabled=True)
    try:
        subprocess.run(
            [ROOT / ".ci" / "clean", "containers"], env={**os.environ, "INSTALLATION": installation}, check=True
        )
        there = {box.id for box in engine.containers.list(all=True, ignore_removed=True)}
        left = {name for name, box in made.items() if box.id in there}
        assert left == set(made) - {"ours"}
    finally:
        for box in made.values():
            try:
                box.remove(force=True)
            except docker.errors.NotFound:
                continue
