"""Owners come and go, the work goes on: every line once, the harness started once, one end."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import events
from orchestrator.drivers.scripted import ScriptedDriver
from orchestrator.errors import EngineUnavailable, Fenced, LinkError, LinkLost, LinkRefused
from orchestrator.events import Entry
from orchestrator.execution import Execution, OutcomeKind, PauseWant, Reason, RetryPolicy
from orchestrator.history import Lease
from orchestrator.lifecycle import ExecutionState
from orchestrator.link import OwnerLink
from tests.engine.stage import INIT, Stage, kinds, printed, stdout

pytestmark = pytest.mark.root
S = ExecutionState

COUNT = "echo start >> starts; i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.01; done; wc -l < starts"
COUNTED = [b"%d" % n for n in range(1, 301)] + [b"1"]


async def whole(here: Stage, asked: Execution) -> Execution:
    record = await here.ended(asked)
    told = await here.history(asked)
    assert stdout(told).split() == COUNTED
    assert kinds(told).count(events.FINISHED) == 1
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert record.outcome is not None and record.outcome.kind is OutcomeKind.SUCCEEDED
    assert (record.attempt, record.failures) == (1, 0)
    return record


async def test_a_worker_that_dies_is_followed_by_another(here: Stage) -> None:
    first = here.work()
    asked = await here.bash(COUNT)
    await here.saw(asked, printed("20\n"))
    await here.stop(first)
    here.work()
    record = await whole(here, asked)
    assert record.epoch == 2
    assert events.ADOPTED in kinds(await here.history(asked))


async def test_several_deaths(here: Stage) -> None:
    asked = await here.bash(COUNT)
    for line in ("5\n", "60\n", "110\n"):
        worker = here.work(lease_s=1.0)
        await here.saw(asked, printed(line))
        await here.stop(worker)
    here.work()
    assert (await whole(here, asked)).epoch == 4


async def test_a_drained_worker_hands_over_at_once(here: Stage) -> None:
    first = here.work(lease_s=3600)  # nobody would live to see it run out
    asked = await here.bash(COUNT)
    await here.saw(asked, printed("20\n"))
    await here.drain(first)
    here.work(lease_s=3600)
    assert (await whole(here, asked)).epoch == 2


async def test_a_broken_line_is_opened_again(here: Stage) -> None:
    here.work()
    asked = await here.bash(COUNT)
    for line in ("10\n", "50\n", "90\n", "130\n"):
        await here.saw(asked, printed(line))
        await cut(here, asked)
    assert (await whole(here, asked)).epoch == 1


async def cut(here: Stage, asked: Execution) -> None:
    """Break the owner's line to init: init closes it when the same epoch comes again."""
    record = await here.parts.executions.get(asked.id)
    assert record.sandbox_id is not None
    with contextlib.suppress(LinkError):  # the owner may be back before our greeting was answered
        duplex = await here.parts.driver.connect(record.sandbox_id)
        link = await OwnerLink.open(duplex, epoch=record.epoch, after=record.src, changed=asyncio.Event())
        await link.close()


async def test_an_owner_from_before_cannot_come_back(here: Stage) -> None:
    """As a worker that was stopped past its lease and continues: its next write, and its next greeting, are refused."""
    asked = await here.bash(COUNT)
    first = here.work(lease_s=1.0)
    before = await here.saw_record(asked, printed("20\n"))
    assert before.owner is not None and before.sandbox_id is not None
    await here.stop(first)
    here.work()
    await here.until(asked, lambda record: record.epoch == 2)
    stale = Lease(asked.id, before.epoch, before.owner, 1.0)
    with pytest.raises(Fenced):
        await here.parts.history.append(stale, attempt=1, own=99, entries=[Entry("progress")])
    with pytest.raises(Fenced):
        await here.parts.executions.renew(stale)
    await here.saw(asked, printed("200\n"))  # the second owner has greeted init by then
    with pytest.raises(LinkRefused):
        await OwnerLink.open(
            await here.parts.driver.connect(before.sandbox_id), epoch=before.epoch, after=0, changed=asyncio.Event()
        )
    await whole(here, asked)


async def test_a_harness_that_ends_while_nobody_looks(here: Stage) -> None:
    first = here.work(lease_s=1.0)
    asked = await here.bash("echo up; read line; echo $line; exit 5")
    await here.saw(asked, printed("up"))
    await here.send(asked, "m", "go")
    await here.saw(asked, lambda event: event.type == events.MESSAGE_DELIVERED)
    await here.stop(first)
    record = await here.parts.executions.get(asked.id)
    assert record.sandbox_id is not None
    await here.parts.driver.remove(record.sandbox_id)  # and its sandbox goes, too: what it left is on disk
    here.work()
    record = await here.ended(asked)
    assert stdout(await here.history(asked)) == b"up\ngo\n"
    assert record.outcome is not None
    assert (record.outcome.reason, record.outcome.exit_code) == (Reason.EXIT_CODE, 5)


class Visited(ScriptedDriver):
    """Somebody else comes to init as an owner of the same epoch, once, just before the gate is opened."""

    visits = 1

    async def enclose(self, sandbox_id: str, spawner_pid: int) -> bool:
        enclosed = await super().enclose(sandbox_id, spawner_pid)
        if self.visits:
            self.visits -= 1
            duplex = await self.connect(sandbox_id)
            await (await OwnerLink.open(duplex, epoch=1, after=0, changed=asyncio.Event())).close()
        return enclosed


async def test_a_line_replaced_on_the_way_is_opened_anew(here: Stage, short_dir: Path) -> None:
    """Not a failed start: there is one attempt, and the harness began once."""
    driver = Visited(short_dir / "boxes", short_dir / "slots", INIT, script=here.script)
    here.parts = replace(here.parts, driver=driver)
    here.work()
    record = await here.ended(await here.bash("echo up"))
    assert driver.visits == 0
    assert (record.attempt, record.outcome and record.outcome.kind) == (1, OutcomeKind.SUCCEEDED)


async def test_a_lost_sandbox_is_lost_and_says_so(here: Stage) -> None:
    here.work()
    asked = await here.bash("echo up; sleep 1000")
    await here.saw(asked, printed("up"))
    record = await here.parts.executions.get(asked.id)
    assert record.sandbox_id is not None
    await here.parts.driver.remove(record.sandbox_id)
    record = await here.ended(asked)
    assert record.outcome is not None
    # It is killed, then removed: a worker may look in between.
    assert record.outcome.kind is OutcomeKind.LOST
    assert record.outcome.reason in (Reason.SANDBOX_LOST, Reason.INIT_LOST)
    assert stdout(await here.history(asked)) == b"up\n"


async def test_a_lost_sandbox_is_tried_again_in_its_old_files_where_policy_says_so(here: Stage) -> None:
    here.work()
    script = (
        "echo $EXECUTION_ATTEMPT $EXECUTION_RESUMED; cat mark; echo been > mark; read a; echo got $a; read b; echo $b"
    )
    asked = await here.bash(script, retry=RetryPolicy(on_lost="retry", backoff_s=0.01))
    await here.send(asked, "a", "one")
    await here.saw(asked, printed("got one"))
    record = await here.parts.executions.get(asked.id)
    assert record.sandbox_id is not None
    await here.parts.driver.remove(record.sandbox_id)
    await here.until(asked, lambda record: record.attempt == 2)
    await here.send(asked, "b", "two")
    record = await here.ended(asked)
    told = await here.history(asked)
    assert stdout(told) == b"1 0\ngot one\n2 1\nbeen\ngot one\ntwo\n"
    delivered = [dict(e.data) for e in told if e.type == events.MESSAGE_DELIVERED]
    assert delivered == [{"n": 1, "id": "a"}, {"n": 1, "id": "a", "redelivered": True}, {"n": 2, "id": "b"}]
    assert (record.attempt, record.failures) == (2, 0)


async def test_a_box_that_ends_by_itself_is_init_lost(here: Stage) -> None:
    here.script.run_for_s = 0.5
    here.work()
    record = await here.ended(await here.bash("sleep 1000"))
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.reason) == (OutcomeKind.LOST, Reason.INIT_LOST)


async def test_unknown_changes_nothing(here: Stage) -> None:
    first = here.work(lease_s=1.0)
    asked = await here.bash(COUNT)
    await here.saw(asked, printed("20\n"))
    await here.stop(first)
    here.script.fail_at["observe"] = [EngineUnavailable("away")] * 8
    here.script.fail_at["connect"] = [LinkLost("not now")] * 3
    here.work()
    await whole(here, asked)
    assert not here.script.fail_at["observe"]


async def test_cancelled_while_the_engine_is_away(here: Stage) -> None:
    first = here.work(lease_s=1.0)
    asked = await here.bash("echo up; sleep 1000")
    await here.saw(asked, printed("up"))
    await here.stop(first)
    here.script.fail_at["observe"] = [EngineUnavailable("away")] * 8
    await here.cancel(asked, 0)
    here.work()
    record = await here.ended(asked)
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.signal) == (OutcomeKind.CANCELLED, 9)


async def test_adopted_while_being_stopped(here: Stage) -> None:
    """Why it was being stopped is not forgotten with the one who began it."""
    first = here.work(lease_s=1.0)
    asked = await here.bash("trap 'echo once' TERM; echo up; while :; do sleep 0.05; done")
    await here.saw(asked, printed("up"))
    await here.cancel(asked, grace_s=1.5)
    await here.saw(asked, printed("once"))
    await here.stop(first)
    here.work()
    record = await here.ended(asked)
    assert record.outcome is not None
    assert (record.outcome.kind, record.outcome.signal) == (OutcomeKind.CANCELLED, 9)
    assert stdout(await here.history(asked)) == b"up\nonce\n"  # SIGTERM came once, whoever asked


async def test_adopted_while_paused(here: Stage) -> None:
    first = here.work(lease_s=1.0)
    asked = await here.bash(COUNT)
    await here.saw(asked, printed("20\n"))
    await here.parts.executions.want(asked.id, PauseWant("p", True))
    await here.until(asked, lambda record: record.state is S.PAUSED)
    await here.stop(first)
    here.work()
    await here.until(asked, lambda record: record.epoch == 2)
    await here.parts.executions.want(asked.id, PauseWant("q", False))
    await whole(here, asked)


async def test_queued_and_claimed_but_never_placed(here: Stage) -> None:
    asked = await here.bash("echo $EXECUTION_ATTEMPT")
    await here.parts.executions.claim("gone", "here", lease_s=0.5)
    here.work()
    record = await here.ended(asked)
    assert stdout(await here.history(asked)) == b"1\n"
    assert (record.attempt, record.epoch) == (1, 2)


async def test_an_init_that_refuses_is_not_lost(here: Stage) -> None:
    """All its lines are taken: it answers, so it lives, however long that goes on."""
    first = here.work(lease_s=1.0)
    asked = await here.bash("echo up; read line; echo $line")
    record = await here.saw_record(asked, printed("up"))
    assert record.sandbox_id is not None
    await here.stop(first)
    lines = [await here.parts.driver.connect(record.sandbox_id) for _ in range(128)]
    here.work(init_lost_after_s=0.05)
    await here.until(asked, lambda record: record.epoch == 2)
    refused = await here.parts.driver.connect(record.sandbox_id)
    assert b"too_many_connections" in await refused.reader.read(4096)
    await refused.close()
    await asyncio.sleep(0.5)  # ten times what a deaf one is given
    assert (await here.parts.executions.get(asked.id)).state is S.RUNNING
    for line in lines:
        await line.close()
    await here.send(asked, "m", "here again")
    await here.ended(asked)
    assert stdout(await here.history(asked)) == b"up\nhere again\n"
