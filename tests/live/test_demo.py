"""What `make demo` shows, in real containers: the agent and a model that follows our script, by each of the three
protocols; a message on the way, an artifact, and a history that a person can read.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import Client
from tests.place import Place, until

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(300), pytest.mark.xdist_group("agent")]

TASK = "Write a small project with a unittest, plant one small bug in it, see the test fail, mend it."


@pytest.fixture(
    scope="module",
    params=[
        "anthropic-messages",
        *(pytest.param(api, marks=pytest.mark.full) for api in ("openai-chat", "openai-responses")),
    ],
)
def place(sandbox_image: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    settings = (f"image={sandbox_image}", "scripted_model=demo", f"default_model_api={request.param}")
    made = Place(Path(tempfile.mkdtemp(prefix="crl-", dir="/tmp")), settings=settings)
    try:
        made.serve()
        yield made
    finally:
        made.close()


def test_the_scripts_agent_mends_its_bug_and_hears_what_it_is_told(place: Place) -> None:
    name = f"demo-{uuid.uuid4().hex[:6]}"
    running = place.start("run", "--harness", "agent", "--name", name, TASK)
    until(lambda: b"check 1 of 5" in running.err, "it checks what it mended")
    with Client(place.url, place.token) as client:  # within its five seconds, however busy this machine is
        client.get(name).send("hello there")
    assert running.code() == 0
    said, did = running.out.decode(), running.err.decode()
    assert "You said: “hello there”. I note it" in said
    assert "The test passes." in said
    for deed in ("$ mkdir prices", "AssertionError: -960 != 30", "  OK", "> hello there", "6 model calls, "):
        assert deed in did
    assert "discount_percent / 100)" in place.ok("artifacts", "get", name, "fix.patch", "-o", "-")
    assert place.ok("artifacts", "get", name, "heard.txt", "-o", "-") == "a message came while I worked\n"
    # The same to whoever comes later.
    later = place.carrel("logs", name)
    assert (later.stdout.decode(), later.stderr.decode()) == (said, did)


def test_any_other_task_is_told_that_there_is_no_model(place: Place) -> None:
    answer = place.ok("run", "--harness", "agent", "What is the answer?")
    assert "No model is configured" in answer and "“What is the answer?”" in answer
    assert place.ok("artifacts", "get", "@last", "hello.txt", "-o", "-").startswith("Left by the scripted model.")
