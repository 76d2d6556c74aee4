"""A disk limit on the btrfs pool, in a real container: the program that passes it is told by the kernel, whoever writes
for it from outside by name, nobody else at all; and all of them go on once something is deleted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import Client
from orchestrator.client.sync import Execution
from orchestrator.errors import DiskFull
from tests.place import Place, until

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(300)]

MIB = 1 << 20
LIMIT_BYTES = 32 * MIB
#: Writes until it may not, says why, and tries again until it may. A log line beside shows that it never stopped.
GREEDY = """
import errno, os
def write(name, mib):
    with open(name, "wb", buffering=0) as file:
        for _ in range(mib):
            assert file.write(os.urandom(1 << 20)) == 1 << 20
try:
    write("big", 64)
except (OSError, AssertionError) as refused:
    try:
        write("more", 2)
    except OSError as refused:
        print(errno.errorcode[refused.errno], flush=True)
while True:
    try:
        write("more", 8)
        break
    except OSError as refused:
        assert refused.errno == errno.EDQUOT, refused
print("wrote", flush=True)
"""


@pytest.fixture(scope="module")
def bounded(sandbox_image: str) -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp"))
    settings = (f"image={sandbox_image}", "lease_s=15", "workspace_store=btrfs", "pool_size_bytes=1g")
    made = Place(folder, settings=settings)
    try:
        made.serve()
        yield made
    finally:
        made.close()


def heard(execution: Execution, text: bytes) -> None:
    for event in execution.events():
        if event.type == "output" and text in (event.body or b""):
            return
    raise AssertionError(f"it ended without {text!r}: {execution.refresh().outcome}")


def writes(execution: Execution) -> int | None:
    """The exit code of one who writes 8 MiB there, as the agent."""
    return execution.exec(["dd", "if=/dev/urandom", "of=mine", "bs=1M", "count=8"]).exit_code


def test_at_the_limit_and_back(bounded: Place) -> None:
    with Client(bounded.url, bounded.token) as client:
        greedy = client.submit(command=["python3", "-c", GREEDY], resources={"disk_bytes": LIMIT_BYTES})
        other = client.submit(command=["sleep", "3600"], resources={"disk_bytes": LIMIT_BYTES})
        heard(greedy, b"EDQUOT")
        with pytest.raises(DiskFull) as refused:
            greedy.files.write("given", bytes(8 * MIB))
        assert refused.value.code == "disk_full" and refused.value.data["where"]
        assert "given" not in [entry.path for entry in greedy.files.list("")], "whole or not at all"
        assert writes(greedy) != 0
        shown = bounded.record(greedy.id)
        assert (shown["state"], shown["attempt"]) == ("RUNNING", 1), "a writer that is refused is not ended"
        assert LIMIT_BYTES * 3 // 4 < shown["disk"]["used_bytes"] <= shown["disk"]["limit_bytes"] == LIMIT_BYTES
        full = greedy.snapshot()

        until(lambda: other.refresh().state == "RUNNING", "the other runs")
        assert writes(other) == 0 and other.files.stat("mine").size_bytes == 8 * MIB, "the limit is its own"
        other.files.write("given", bytes(8 * MIB))

        greedy.files.remove("big")
        heard(greedy, b"wrote")
        record = greedy.wait(60)
        assert record.outcome is not None and record.outcome.kind == "SUCCEEDED", record
        greedy.files.write("given", bytes(8 * MIB))
        assert {"given", "more"} <= {entry.path for entry in greedy.files.list("")}
        assert greedy.files.stat("big", snapshot=full.id).size_bytes > LIMIT_BYTES * 3 // 4
        for one in (greedy, other):
            one.delete(force=True)
