"""A worker that dies at every named point of an execution's way: the next one brings it to its proper end, once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from ulid import ULID

from orchestrator import events
from orchestrator.engine.crash_point import CRASH_POINTS
from orchestrator.events import Cursor, Event
from orchestrator.execution import (
    CancelWant,
    Execution,
    HibernateWant,
    InterruptWant,
    OutcomeKind,
    RetryPolicy,
    SnapshotWant,
    Spec,
)
from orchestrator.harnesses import Harness
from orchestrator.lifecycle import ExecutionState
from orchestrator.stores.redis import Keys, RedisSnapshots
from tests.faults.ground import Ground, ground
from tests.faults.judge import told

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

#: The others are for `make test-all`: each costs two starts of a worker and a lease.
ALWAYS = {"after_place", "after_start", "after_relay_append", "after_exit_append", "after_finish_append"} | {
    "after_artifacts",
    *("after_freeze", "before_snapshot_append", "after_hibernating"),
}

WORK = (
    "echo start >> starts; echo left > artifacts/a; exec 9<> <(:); trap 'echo int; exit 0' INT; "
    "echo up; read m; echo got $m; while :; do read -t 0.05 -u 9; done"
)
STUBBORN = "echo start >> starts; exec 9<> <(:); trap 'echo term' TERM; echo up; while :; do read -t 0.05 -u 9; done"
SLEEPER = "echo start >> starts; echo up $EXECUTION_ATTEMPT; read m; echo got $m; [ $EXECUTION_ATTEMPT = 2 ] || exit 75"
DREAMER = (
    "echo start >> starts; echo up $EXECUTION_ATTEMPT; while read m; do echo got $m; [ $m != end ] || exit 0; done"
)
ARCHIVED = {"archive", "history", "fetch"}
PHOENIX = "echo start >> starts; echo up $EXECUTION_ATTEMPT; read m; echo got $m"

SCENES = {
    **dict.fromkeys(("after_stopping", "after_terminate", "after_kill"), "cancel"),
    **dict.fromkeys(("before_cut_append", "after_cut_append"), "sleep"),
    **dict.fromkeys(("before_lost_append", "after_lost_append"), "loss"),
    **dict.fromkeys(
        (
            *("before_freeze", "after_freeze", "after_quiesce", "after_snapshot", "before_thaw", "after_thaw"),
            *("before_snapshot_append", "after_snapshot_append"),
        ),
        "snapshot",
    ),
    "after_hibernating": "dream",
    **dict.fromkeys(("after_archive_layer", "after_archive_manifest", "after_archived"), "archive"),
    "after_history_archived": "history",
    "after_fetch": "fetch",
}
SCRIPTS = {
    "work": WORK,
    "cancel": STUBBORN,
    "sleep": SLEEPER,
    "loss": PHOENIX,
    "snapshot": WORK,
    "dream": DREAMER,
    "archive": WORK,
    "history": WORK,
    "fetch": DREAMER,
}


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=() if p in ALWAYS else pytest.mark.full) for p in CRASH_POINTS]
)
async def test_every_point_is_survived(point: str) -> None:
    async with ground() as here:
        scene = SCENES.get(point, "work")
        (here.folder / "archive").mkdir()
        archived = {"CARREL_ARCHIVE_URL": f"file://{here.folder}/archive"} if scene in ARCHIVED else {}
        if scene == "history":
            archived["CARREL_HISTORY_ARCHIVE_AFTER_S"] = "1"
        given = {"CARREL_LEASE_S": "1", "CARREL_SWEEP_INTERVAL_S": "1", **archived}
        doomed = await here.worker(CARREL_CRASH_AT=point, **given)
        execution = await submit(here, SCRIPTS[scene])
        acts = {"work": work, "cancel": cancel, "sleep": sleep, "loss": lose, "snapshot": snapshot, "dream": dream}
        acts |= {"archive": archive, "history": history_archived, "fetch": fetch}
        acting = asyncio.create_task(acts[scene](here, execution))
        assert doomed.child is not None
        assert await doomed.child.wait() == 137, f"it did not come to {point}\n{here.last_logs()}"
        await here.worker(**given)
        printed, kind, attempts = await acting

        history = await told(here, execution)
        record = await here.executions.get(execution.id)
        assert record.outcome is not None and record.outcome.kind is kind, here.last_logs()
        assert record.attempt == attempts
        assert b"".join(e.body or b"" for e in history if e.type == events.OUTPUT) == printed
        assert [event.seq for event in history] == list(range(1, len(history) + 1))
        assert [event.type for event in history].count(events.FINISHED) == 1
        assert record.sandbox_id is not None
        assert here.starts(record.sandbox_id) == attempts
        if scene in ("work", "snapshot"):
            listed = [e.data for e in history if e.type == events.ARTIFACT]
            assert [(one["path"], one["size_bytes"]) for one in listed] == [("a", 5)]
        delivered = [(e.data["n"], e.attempt) for e in history if e.type == events.MESSAGE_DELIVERED]
        assert len(delivered) == len(set(delivered))


async def submit(here: Ground, script: str) -> Execution:
    goes_on = Harness("goes-on", ("/bin/bash", "-c", script), resumes=True, reads_task=False)
    spec = Spec(harness=goes_on.name, declared=goes_on, retry=RetryPolicy(on_lost="retry", backoff_s=0.01))
    done = await here.executions.submit(spec, execution_id=f"exe_{str(ULID()).lower()}")
    return done.execution


async def following(here: Ground, execution: Execution) -> AsyncIterator[Event]:
    async for page in here.history.follow(execution.id, Cursor()):
        for event in page.events:
            yield event
        if page.closed:
            return


async def saw(here: Ground, execution: Execution, text: bytes) -> None:
    async for event in following(here, execution):
        if event.type == events.OUTPUT and text in (event.body or b""):
            return


async def end(here: Ground, execution: Execution) -> None:
    async for _ in following(here, execution):
        pass


Ending = tuple[bytes, OutcomeKind, int]


async def work(here: Ground, execution: Execution) -> Ending:
    """Prints, is told something, is interrupted, ends well."""
    await here.history.send(execution.id, "m", b"hi")
    await saw(here, execution, b"got hi")
    await here.executions.want(execution.id, InterruptWant("i", 1))
    await end(here, execution)
    return b"up\ngot hi\nint\n", OutcomeKind.SUCCEEDED, 1


async def cancel(here: Ground, execution: Execution) -> Ending:
    """Is asked to end, does not, is killed."""
    await saw(here, execution, b"up")
    await here.executions.want(execution.id, CancelWant("c", grace_s=1.0))
    await end(here, execution)
    return b"up\nterm\n", OutcomeKind.CANCELLED, 1


async def sleep(here: Ground, execution: Execution) -> Ending:
    """Goes to sleep, is woken by a message, ends well."""
    await here.history.send(execution.id, "m", b"one")
    while (await here.executions.get(execution.id)).state is not ExecutionState.HIBERNATED:
        await asyncio.sleep(0.02)
    await here.history.send(execution.id, "n", b"two")
    await end(here, execution)
    return b"up 1\ngot one\nup 2\ngot two\n", OutcomeKind.SUCCEEDED, 2


async def snapshot(here: Ground, execution: Execution) -> Ending:
    """A snapshot is taken of it, once, and it goes on."""
    await saw(here, execution, b"up")
    want = SnapshotWant("snp_01aaaaaaaaaaaaaaaaaaaaaaaa")
    await here.executions.want(execution.id, want)
    while (await here.executions.get(execution.id)).wants.snapshots:
        await asyncio.sleep(0.02)
    ending = await work(here, execution)
    history = await told(here, execution)
    made = [event.data["id"] for event in history if event.type == events.SNAPSHOT_CREATED]
    assert made.count(want.id) == 1, made
    assert here.workspaces.snapshot_files(want.id).stat("starts").size_bytes == len("start\n")
    return ending


async def dream(here: Ground, execution: Execution) -> Ending:
    """Is put to sleep, is woken by a message, ends well."""
    await here.history.send(execution.id, "m", b"one")
    await saw(here, execution, b"got one")
    await here.executions.want(execution.id, HibernateWant("h"))
    while (await here.executions.get(execution.id)).state is not ExecutionState.HIBERNATED:
        await asyncio.sleep(0.02)
    await here.history.send(execution.id, "n", b"end")
    await end(here, execution)
    return b"up 1\ngot one\nup 2\ngot end\n", OutcomeKind.SUCCEEDED, 2


async def archive(here: Ground, execution: Execution) -> Ending:
    """A snapshot of it gets into the archive, whole, by whichever worker."""
    await saw(here, execution, b"up")
    want = SnapshotWant("snp_01aaaaaaaaaaaaaaaaaaaaaaaa")
    await here.executions.want(execution.id, want)
    await whole_in_archive(here, want.id)
    return await work(here, execution)


async def whole_in_archive(here: Ground, snapshot_id: str) -> None:
    snapshots = RedisSnapshots(here.server, Keys(here.installation))
    while not any(one.archived for one in await snapshots.some([snapshot_id])):
        await asyncio.sleep(0.05)
    (manifest,) = (here.folder / "archive").rglob(f"{snapshot_id}/*.json")
    assert (manifest.parents[2] / json.loads(manifest.read_text())["layer"]).is_file()


async def history_archived(here: Ground, execution: Execution) -> Ending:
    """Ends, and its history goes into the archive, where all of it is read."""
    ending = await work(here, execution)
    while not (await here.executions.get(execution.id)).history_archived:
        await asyncio.sleep(0.05)
    return ending


async def fetch(here: Ground, execution: Execution) -> Ending:
    """Is put to sleep, loses its files on this host, and is fetched."""
    await here.history.send(execution.id, "m", b"one")
    await saw(here, execution, b"got one")
    await here.executions.want(execution.id, HibernateWant("h"))
    while (record := await here.executions.get(execution.id)).state is not ExecutionState.HIBERNATED:
        await asyncio.sleep(0.02)
    assert record.snapshot_id is not None and record.sandbox_id is not None
    await whole_in_archive(here, record.snapshot_id)
    await here.workspaces.drop(record.snapshot_id)
    await here.workspaces.remove(record.sandbox_id)
    await here.history.send(execution.id, "n", b"end")
    await end(here, execution)
    return b"up 1\ngot one\nup 2\ngot end\n", OutcomeKind.SUCCEEDED, 2


async def lose(here: Ground, execution: Execution) -> Ending:
    """Its sandbox is killed, another attempt goes on in its files."""
    await saw(here, execution, b"up 1")
    record = await here.executions.get(execution.id)
    assert record.sandbox_id is not None
    await here.driver.remove(record.sandbox_id)
    await saw(here, execution, b"up 2")
    await here.history.send(execution.id, "m", b"hi")
    await end(here, execution)
    return b"up 1\nup 2\ngot hi\n", OutcomeKind.SUCCEEDED, 2
