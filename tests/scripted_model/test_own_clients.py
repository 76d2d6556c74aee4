"""The formats are right: the providers' own client libraries read one turn the same, from each, streamed and whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scripted_model import ScriptedModel, read

ROOT = Path(__file__).parents[2]
SDKS = ROOT / "build" / "sdks"  # `.ci/setup python sdks`, which `make test` does
TURN = {"thought": "Where am I? Let me see.", "text": "I look: ü € “here”.", "run": "ls -la"}
SCRIPTS = {
    "scripts": {
        "turn": [TURN],
        "limited": [{"text": "x", "fault": {"status": 429, "retry_after_s": 2, "times": 9}}],
    }
}


@pytest.fixture(scope="module")
def found() -> Any:
    assert (SDKS / "anthropic").is_dir(), "the providers' clients are not there: .ci/setup python sdks"
    program = [sys.executable, str(Path(__file__).with_name("own_clients.py"))]
    with ScriptedModel(read(SCRIPTS), key="k-1") as model:
        said = subprocess.run(
            [*program, model.url, "k-1"],
            capture_output=True,
            text=True,
            timeout=60,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SDKS)},
        )
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


@pytest.mark.parametrize("api", ["messages", "chat", "responses"])
def test_their_client_reads_the_turn(found: Any, api: str) -> None:
    whole, streamed = found[f"{api} whole"], found[f"{api} streamed"]
    assert whole == streamed
    assert (whole["thought"], whole["text"]) == (TURN["thought"], TURN["text"])
    ((id, name, arguments),) = whole["calls"]
    assert id and (name, arguments) == ("bash", {"command": "ls -la"})
    assert whole["stop"] == {"messages": "tool_use", "chat": "tool_calls", "responses": "completed"}[api]
    assert all(count > 0 for count in whole["usage"])


def test_their_clients_know_the_errors_and_the_rest(found: Any) -> None:
    assert (found["anthropic refused"], found["openai refused"]) == ("authentication_error", "invalid_api_key")
    assert (found["anthropic limited"], found["openai limited"]) == ("2", "2")
    assert found["models"] == [["scripted"], ["scripted"]]
    assert found["counted"] > 0
