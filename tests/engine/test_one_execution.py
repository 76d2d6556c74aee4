"""One execution from submit to its end, on a real init and a real store: its output, its end, what is wished of it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import pytest

from orchestrator import events
from orchestrator.errors import CarrelError, DiskFull, EngineUnavailable
from orchestrator.execution import (
    Execution,
    FileRef,
    InterruptWant,
    Limits,
    OutcomeKind,
    PauseWant,
    Reason,
    Resources,
    ResourcesWant,
    RetryPolicy,
)
from orchestrator.lifecycle import ExecutionState
from tests.engine.stage import Stage, kinds, printed, stdout

pytestmark = pytest.mark.root
S = ExecutionState


def ended_as(record: Execution) -> tuple[OutcomeKind, Reason, int | None, int | None]:
    assert record.state is S.FINISHED and record.outcome is not None
    return record.outcome.kind, record.outcome.reason, record.outcome.exit_code, record.outcome.signal


async def test_hello(here: Stage) -> None:
    here.work()
    asked = await here.bash("echo hello; echo oh >&2")
    record = await here.ended(asked)
    told = await here.history(asked)
    assert ended_as(record) == (OutcomeKind.SUCCEEDED, Reason.EXIT_CODE, 0, None)
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
    assert record.attempt == 1 and record.epoch == 1 and record.owner is None


async def test_the_sandbox_goes_and_the_files_stay(here: Stage) -> None:
    worker = here.work()
    asked = await here.bash(
        "mkdir -p artifacts/a; printf abc > artifacts/a/x; ln -s /etc/passwd artifacts/link; echo kept > file"
    )
    record = await here.ended(asked)
    assert record.sandbox_id is not None
    told = await here.history(asked)
    listed = [dict(e.data) for e in told if e.type == events.ARTIFACT]
    refused = {"path": "link", "size_bytes": 11, "refused": "it leads nowhere inside the workspace"}
    assert listed == [{"path": "a/x", "size_bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}, refused]
    await here.idle(worker)
    assert await here.parts.driver.list() == []
    file = here.parts.workspaces.files(record.sandbox_id).open("file")
    assert file.read(0, 100) == b"kept\n"
    file.close()
    assert not here.parts.workspaces.slot(record.sandbox_id).spool.exists()


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("exit 3", (OutcomeKind.FAILED, Reason.EXIT_CODE, 3, None)),
        ("exit 78", (OutcomeKind.FAILED, Reason.BAD_CONFIGURATION, 78, None)),
        ("kill -SEGV $$", (OutcomeKind.FAILED, Reason.SIGNAL, None, 11)),
    ],
)
async def test_how_it_ends(here: Stage, script: str, outcome: object) -> None:
    here.work()
    assert ended_as(await here.ended(await here.bash(script))) == outcome


async def test_a_command_that_is_not_there(here: Stage) -> None:
    here.work()
    record = await here.ended(await here.submit(harness="command", command=("/no/such",)))
    assert ended_as(record)[:2] == (OutcomeKind.FAILED, Reason.COMMAND_NOT_FOUND)


async def test_what_the_harness_is_given(here: Stage) -> None:
    here.work()
    script = 'env -0 | sort -z | tr "\\0" "\\n"; cat "$TASK_FILE"; test "$PWD" -ef /workspace && echo there'
    asked = await here.submit(
        "do it\nnow", harness="command", command=("bash", "-c", script), name="nice", env={"MINE": "1", "TASK": "no"}
    )
    await here.ended(asked)
    text = stdout(await here.history(asked)).decode()
    for line in (
        "GATEWAY_INTERFACE=CARREL/1",
        f"EXECUTION_ID={asked.id}",
        "EXECUTION_NAME=nice",
        "EXECUTION_ATTEMPT=1",
        "EXECUTION_RESUMED=0",
        "MINE=1",
        "TASK=do it\nnow",
        "WORKSPACE=/workspace",
    ):
        assert f"{line}\n" in text
    assert text.endswith("do it\nnowthere\n")
    assert "PYTEST" not in text


async def test_cancel_asks_first(here: Stage) -> None:
    here.work()
    asked = await here.bash("trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done")
    await here.saw(asked, printed("up"))
    await here.cancel(asked)
    record = await here.ended(asked)
    assert ended_as(record) == (OutcomeKind.CANCELLED, Reason.CANCELLED, 9, None)
    assert stdout(await here.history(asked)) == b"up\nbye\n"


async def test_cancel_then_kills_everything(here: Stage) -> None:
    here.work()
    asked = await here.bash("trap '' TERM; (trap '' TERM; setsid sleep 1000) & echo up; while :; do sleep 0.05; done")
    await here.saw(asked, printed("up"))
    await here.cancel(asked, grace_s=0.1)
    assert ended_as(await here.ended(asked)) == (OutcomeKind.CANCELLED, Reason.CANCELLED, None, 9)


async def test_a_second_cancel_may_shorten_the_grace(here: Stage) -> None:
    here.work()
    asked = await here.bash("trap '' TERM; echo up; while :; do sleep 0.05; done")
    await here.saw(asked, printed("up"))
    await here.cancel(asked, grace_s=3600)
    await here.until(asked, lambda record: record.state is S.STOPPING)
    await here.cancel(asked, grace_s=0)
    assert ended_as(await here.ended(asked))[0] is OutcomeKind.CANCELLED


async def test_deadline(here: Stage) -> None:
    here.work()
    asked = await here.bash("while :; do echo x; done", limits=Limits(deadline_s=1.0, grace_s=0.2))
    record = await here.ended(asked)
    assert ended_as(record)[:2] == (OutcomeKind.TIMED_OUT, Reason.DEADLINE)


async def test_pause_and_resume(here: Stage) -> None:
    here.work()
    asked = await here.bash("i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo $i; sleep 0.02; done")
    await here.saw(asked, printed("5\n"))
    await here.parts.executions.want(asked.id, PauseWant("p1", True))
    paused = await here.until(asked, lambda record: record.state is S.PAUSED)
    assert paused.sandbox_id is not None and paused.wants.pause is None
    status = await here.parts.driver.observe(paused.sandbox_id)
    assert getattr(status, "paused", None) is True
    await here.parts.executions.want(asked.id, PauseWant("p2", False))
    assert ended_as(await here.ended(asked))[0] is OutcomeKind.SUCCEEDED
    assert stdout(await here.history(asked)).split() == [b"%d" % n for n in range(1, 101)]


async def test_cancel_while_paused(here: Stage) -> None:
    here.work()
    asked = await here.bash("trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done")
    await here.saw(asked, printed("up"))
    await here.parts.executions.want(asked.id, PauseWant("p1", True))
    await here.until(asked, lambda record: record.state is S.PAUSED)
    await here.cancel(asked)
    assert ended_as(await here.ended(asked)) == (OutcomeKind.CANCELLED, Reason.CANCELLED, 9, None)


async def test_interrupt_reaches_it_once_in_the_middle_of_a_command(here: Stage) -> None:
    here.work()
    asked = await here.bash("trap 'echo int' INT; echo up; sleep 1000; echo after; read line; exit 0")
    await here.saw(asked, printed("up"))
    for _ in range(2):
        await here.parts.executions.want(asked.id, InterruptWant("i1", 1))
    await here.saw(asked, lambda event: event.type == events.INTERRUPTED)
    await here.saw(asked, printed("after"))
    await here.send(asked, "m", "go")
    record = await here.ended(asked)
    told = await here.history(asked)
    assert ended_as(record)[0] is OutcomeKind.SUCCEEDED
    assert stdout(told) == b"up\nint\nafter\n"
    assert kinds(told).count(events.INTERRUPTED) == 1 and not record.wants.interrupts


async def test_resources(here: Stage) -> None:
    here.work()
    asked = await here.bash("read line", resources=Resources(cpus=1.0))
    await here.until(asked, lambda record: record.state is S.RUNNING)
    await here.parts.executions.want(asked.id, ResourcesWant("r1", cpus=2.0, pids=99))
    event = await here.saw(asked, lambda event: event.type == events.SANDBOX_RESIZED)
    assert (event.data["id"], event.data["result"], event.data["cpus"]) == ("r1", "applied", 2.0)
    assert event.data["measured"]["pids"] == 99
    record = await here.parts.executions.get(asked.id)
    assert (record.resources.cpus, record.resources.pids, record.wants.resources) == (2.0, 99, None)
    await here.cancel(asked, 0)
    await here.ended(asked)


async def test_an_image_that_is_missing_is_not_tried_again(here: Stage) -> None:
    here.work()
    record = await here.ended(await here.bash("true", image="missing"))
    assert ended_as(record)[:2] == (OutcomeKind.FAILED, Reason.IMAGE_MISSING)
    assert record.attempt == 1


async def test_starts_that_fail_are_tried_again_in_a_new_sandbox(here: Stage) -> None:
    here.script.fail_at["ensure"] = [CarrelError("no"), DiskFull("full", where="here")]
    here.work()
    asked = await here.bash("echo $EXECUTION_ATTEMPT $EXECUTION_RESUMED", retry=RetryPolicy(backoff_s=0.01))
    record = await here.ended(asked)
    assert ended_as(record)[0] is OutcomeKind.SUCCEEDED
    told = await here.history(asked)
    assert stdout(told) == b"3 0\n"
    assert [e.data["reason"] for e in told if e.type == events.SANDBOX_LOST] == ["start_failed", "disk_full"]
    assert (record.attempt, record.failures) == (3, 0)


async def test_starts_that_always_fail_end(here: Stage) -> None:
    here.script.fail_at["ensure"] = [CarrelError("no")] * 9
    here.work()
    asked = await here.bash("true", retry=RetryPolicy(max_failures=2, backoff_s=0.01))
    record = await here.ended(asked)
    assert ended_as(record)[:2] == (OutcomeKind.FAILED, Reason.START_FAILED)
    assert record.attempt == 3


async def test_an_engine_that_does_not_answer_changes_nothing(here: Stage) -> None:
    here.script.fail_at["ensure"] = [EngineUnavailable("away")] * 4
    here.script.fail_at["remove"] = [EngineUnavailable("away")]
    here.work(sweep_interval_s=0.2, orphan_grace_s=0.0)
    record = await here.ended(asked := await here.bash("echo once"))
    assert ended_as(record)[0] is OutcomeKind.SUCCEEDED
    assert (record.attempt, record.failures) == (1, 0)
    assert stdout(await here.history(asked)) == b"once\n"
    assert record.sandbox_id is not None
    await here.gone(record.sandbox_id)  # by the sweeper


async def test_cancelled_before_it_could_start(here: Stage) -> None:
    here.script.fail_at["ensure"] = [EngineUnavailable("away")] * 1000
    here.work()
    asked = await here.bash("echo never")
    await here.until(asked, lambda record: record.state is S.STARTING)
    await here.cancel(asked)
    record = await here.ended(asked)
    assert ended_as(record) == (OutcomeKind.CANCELLED, Reason.CANCELLED, None, None)
    assert stdout(await here.history(asked)) == b""


async def test_a_file_whose_content_is_not_there(here: Stage) -> None:
    here.work()
    missing = FileRef("a", hashlib.sha256(b"nowhere").hexdigest(), 7)
    record = await here.ended(await here.bash("cat a", files=(missing,)))
    assert ended_as(record)[:2] == (OutcomeKind.FAILED, Reason.BAD_CONFIGURATION)
    assert record.outcome is not None
    assert missing.sha256 in record.outcome.message and "share its `blobs/`" in record.outcome.message


async def test_files_are_there_before_it_begins(here: Stage) -> None:
    here.work()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"#!/bin/sh\necho ran\n"

    sha256, size_bytes = await here.parts.blobs.put(chunks(), limit_bytes=1 << 20)
    file = FileRef("bin/tool", sha256, size_bytes, 0o755)
    asked = await here.bash("bin/tool", files=(file,))
    assert ended_as(await here.ended(asked))[0] is OutcomeKind.SUCCEEDED
    assert stdout(await here.history(asked)) == b"ran\n"


async def test_a_disk_limit_that_is_measured(here: Stage) -> None:
    """The store of these tests cannot bound: what is over is ended, with figures; a higher limit is a wish."""
    here.work(look_s=0.1)
    writes = "echo up; read m; dd if=/dev/zero of=big bs=1M count=4 status=none; echo wrote; exec sleep 1000"
    allowed = Resources(disk_bytes=2 << 20)
    asked = await here.bash(writes, resources=allowed)
    raised = await here.bash(writes, resources=allowed)
    await here.saw(raised, printed("up"))
    await here.parts.executions.want(raised.id, ResourcesWant("more", disk_bytes=64 << 20))
    await here.until(raised, lambda record: record.resources.disk_bytes == 64 << 20)
    for one in (raised, asked):
        await here.send(one, "go", "go")
    record = await here.ended(asked)
    assert ended_as(record)[:2] == (OutcomeKind.FAILED, Reason.DISK_FULL)
    assert record.outcome is not None and f"may take {2 << 20}" in record.outcome.message
    await here.saw(raised, printed("wrote"))
    assert (await here.parts.executions.get(raised.id)).state is ExecutionState.RUNNING
