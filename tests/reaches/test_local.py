"""The same host's Reach: through the ports, for a sandbox that is really there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.errors import Conflict, LinkLost, Unavailable
from orchestrator.execution import Execution, Spec
from orchestrator.lifecycle import ExecutionState
from orchestrator.link import ViewerLink
from orchestrator.reaches.local import LocalReach
from tests.sandboxes import ScriptedBench

pytestmark = pytest.mark.root


@pytest.fixture
async def bench(short_dir: Path) -> AsyncIterator[ScriptedBench]:
    made = ScriptedBench(short_dir)
    try:
        yield made
    finally:
        await made.close()


def execution(sandbox_id: str | None, state: ExecutionState = ExecutionState.RUNNING, host: str = "h1") -> Execution:
    now = datetime.now(UTC)
    return Execution("exe_a", Spec(), state, now, sandbox_id=sandbox_id, host=host)


async def test_bytes_and_files_of_a_living_one(bench: ScriptedBench) -> None:
    sandbox_id = await bench.opened()
    reach = LocalReach(bench.driver, bench.store, "h1")
    async with await ViewerLink.open(await reach.open(execution(sandbox_id))) as viewer:
        assert viewer.hello.sandbox_id == sandbox_id
    await bench.sh(sandbox_id, "echo hello > note")
    opened = (await reach.files(execution(sandbox_id))).open("note")
    try:
        assert opened.read(0, 9) == b"hello\n"
    finally:
        opened.close()


@pytest.mark.parametrize("state", [ExecutionState.QUEUED, ExecutionState.HIBERNATED, ExecutionState.FINISHED])
async def test_no_living_sandbox_is_a_conflict_with_a_remedy(bench: ScriptedBench, state: ExecutionState) -> None:
    reach = LocalReach(bench.driver, bench.store, "h1")
    with pytest.raises(Conflict) as caught:
        await reach.open(execution("sbx_a", state))
    assert caught.value.data["state"] == state and caught.value.data["remedy"]
    with pytest.raises(Conflict):
        await reach.open(execution(None))
    with pytest.raises(Conflict):
        await reach.files(execution(None))
    with pytest.raises(Conflict):
        await reach.files(execution("sbx_never"))


async def test_a_sandbox_that_does_not_listen_is_link_lost(bench: ScriptedBench) -> None:
    sandbox_id, _ = await bench.slot()
    with pytest.raises(LinkLost):
        await LocalReach(bench.driver, bench.store, "h1").open(execution(sandbox_id))


async def test_another_host_is_unavailable_not_absent(bench: ScriptedBench) -> None:
    sandbox_id, _ = await bench.slot()
    reach = LocalReach(bench.driver, bench.store, "h2")
    for asked in (reach.open, reach.files):
        with pytest.raises(Unavailable) as caught:
            await asked(execution(sandbox_id))
        assert caught.value.data["host"] == "h1"
        assert "an api on that host" in caught.value.data["remedy"]


async def test_a_finished_ones_files_are_there_until_removed(bench: ScriptedBench) -> None:
    sandbox_id, _ = await bench.slot()
    reach = LocalReach(bench.driver, bench.store, "h1")
    ended = replace(execution(sandbox_id), state=ExecutionState.FINISHED)
    assert (await reach.files(ended)).stat("").kind == "directory"
    await bench.store.remove(sandbox_id)
    with pytest.raises(Conflict):
        await reach.files(ended)
