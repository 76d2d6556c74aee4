"""One execution from submit to its end, on a real init and a real store."""

from __future__ import annotations

import pytest

from orchestrator import events
from orchestrator.execution import OutcomeKind
from tests.engine.stage import Stage, kinds, stdout

pytestmark = pytest.mark.root


async def test_echo_hello(here: Stage) -> None:
    here.work()
    asked = await here.submit(harness="command", command=("echo", "hello"))
    record = await here.ended(asked)
    told = await here.history(asked)
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.exit_code) == (OutcomeKind.SUCCEEDED, 0)
    assert stdout(told) == b"hello\n"
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert kinds(told)[-1] == events.FINISHED
    states = [(e.data["from"], e.data["to"]) for e in told if e.type == events.STATE]
    assert states == [
        ("QUEUED", "STARTING"),
        ("STARTING", "RUNNING"),
        ("RUNNING", "STOPPING"),
        ("STOPPING", "FINISHED"),
    ]
