"""The archive in the engine: what sleeps on one host wakes on another, what is damaged or full is said, what nobody
needs goes; histories that have ended are read on."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from ulid import ULID

from orchestrator import events
from orchestrator.archive import MOST_LAYERS, Archive
from orchestrator.archives.place import archive_at
from orchestrator.engine.archive_sweep import ArchiveSweep
from orchestrator.engine.parts import Parts
from orchestrator.engine.snapshot_sweep import sweep_snapshots
from orchestrator.errors import Conflict
from orchestrator.events import Cursor, Event
from orchestrator.execution import Execution, OutcomeKind
from orchestrator.snapshots import Origin, Snapshot
from tests.engine.stage import Stage, printed, stage, stdout
from tests.engine.test_hibernate import S, begin, ledger, sleep
from tests.engine.test_snapshots import cut
from tests.s3_server import KEY, SECRET, s3_server

pytestmark = pytest.mark.root


@pytest.fixture
def archive(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Archive]:
    """A folder; where the test asks for it, a bucket."""
    if getattr(request, "param", "disk") == "disk":
        (short_dir / "archive").mkdir()
        yield archive_at(f"file://{short_dir}/archive", "test")
        return
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for name, value in (("ACCESS_KEY_ID", KEY), ("SECRET_ACCESS_KEY", SECRET), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with s3_server(short_dir / "s3") as endpoint:
        yield archive_at("s3://bucket/below", "test", endpoint=endpoint)


@pytest.fixture
async def here(redis_url: str, installation: str, short_dir: Path, archive: Archive) -> AsyncIterator[Stage]:
    async with stage(
        redis_url, installation, short_dir / "h", archive=archive, archive_tidy_s=0.0, host_lost_after_s=5.0
    ) as made:
        yield made


def names(archive: Archive, prefix: str = "snapshots/") -> list[str]:
    return sorted(one.name for one in archive.list(prefix))


async def newest(here: Stage, execution: Execution) -> Snapshot:
    record = await here.parts.executions.get(execution.id)
    return await here.parts.snapshots.get(record.snapshot_id or "", tenant="default")


async def archived(here: Stage, execution: Execution) -> Snapshot:
    while not (found := await newest(here, execution)).archived:
        await asyncio.sleep(0.02)
    return found


async def silent(here: Stage, host: str = "here") -> None:
    """As if it had not been heard of for long: its executions are taken from it."""
    await here.parts.executions.evict(host)


@asynccontextmanager
async def asleep_and_its_host_gone(here: Stage) -> AsyncIterator[Execution]:
    """One that slept with a message read, archived; its worker is gone, and its host lost."""
    worker = here.work()
    asked = await begin(here)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    await sleep(here, asked)
    await archived(here, asked)
    await here.stop(worker)
    await silent(here)
    yield await here.parts.executions.get(asked.id)


@pytest.mark.parametrize("archive", ["disk", "s3"], indirect=True)
async def test_what_one_host_put_to_sleep_another_wakes(here: Stage, short_dir: Path, archive: Archive) -> None:
    async with asleep_and_its_host_gone(here) as slept:
        assert slept.state is S.HIBERNATED and slept.host is None
        _, parts = here.elsewhere(short_dir / "e")
        await here.send(slept, "2", "two")
        await here.saw(slept, printed("got two as 2"))
        record = await here.parts.executions.get(slept.id)
        assert record.host == "elsewhere" and record.attempt == 2
        assert [one for one, _ in await parts.workspaces.snapshots()] == [slept.snapshot_id]
        # Sleeping there it is a layer on what was fetched, and wakes at home again.
        await sleep(here, slept, "h2")
        second = await archived(here, slept)
        assert second.host == "elsewhere" and f"snapshots/{second.id}/on-{slept.snapshot_id}.json" in names(archive)
        await silent(here, "elsewhere")
        for one, task in here.workers:
            await here.stop(one)
            assert task.done()
        here.work()
        await here.send(slept, "3", "three")
        await here.saw(slept, printed("got three as 3"))
        await here.send(slept, "4", "end")
        ended = await here.ended(slept)
        assert ended.outcome is not None and ended.outcome.kind is OutcomeKind.SUCCEEDED
        for box in await parts.driver.list():
            await parts.driver.remove(box.sandbox_id)


async def test_a_fork_begins_on_any_host(here: Stage, short_dir: Path) -> None:
    worker = here.work()
    asked = await begin(here)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    snapshot = await cut(here, asked)
    origin = Origin(asked.id, snapshot.id, snapshot.cut.seq)
    await here.stop(worker)
    early = await here.parts.executions.submit(  # before it is archived: it waits for the snapshot's host, until then
        replace(asked.spec, origin=origin), execution_id=f"exe_{str(ULID()).lower()}"
    )
    assert early.execution.host == "here"
    await sweep_snapshots(here.parts, trusted=True)
    await ArchiveSweep(here.parts).sweep(trusted=True)
    assert (await here.parts.executions.get(early.execution.id)).host is None
    _, parts = here.elsewhere(short_dir / "e")
    fork = await here.submit(harness="ledger", declared=ledger(), origin=origin)
    for one in (early.execution, fork):
        await here.saw(one, printed("up 1"))
        await here.send(one, "x", "more")
        await here.saw(one, printed("got more as 2"))
        assert (await here.parts.executions.get(one.id)).host == "elsewhere"
        await here.cancel(one, 0.0)
        await here.ended(one)
    for box in await parts.driver.list():
        await parts.driver.remove(box.sandbox_id)


def damage(archive: Archive, snapshot: Snapshot) -> None:
    name = next(one for one in names(archive) if snapshot.id in one and one.endswith(".zst"))
    data = bytearray(b"".join(archive.get(name)))
    data[len(data) // 2] ^= 1
    archive.put(name, [bytes(data)])


async def test_a_damaged_one_is_refused_by_name_and_the_one_before_taken(
    here: Stage, short_dir: Path, archive: Archive
) -> None:
    worker = here.work()
    asked = await begin(here)
    await here.send(asked, "1", "one")
    await here.saw(asked, printed("got one as 1"))
    first = await cut(here, asked)
    while not (await newest(here, asked)).archived:
        await asyncio.sleep(0.02)
    await here.send(asked, "2", "two")
    await here.saw(asked, printed("got two as 2"))
    await sleep(here, asked)
    second = await archived(here, asked)
    await here.stop(worker)
    await silent(here)
    damage(archive, second)
    _, parts = here.elsewhere(short_dir / "e")
    await here.send(asked, "3", "three")
    told = await here.saw(asked, lambda event: event.type == events.SNAPSHOT_CORRUPT)
    assert told.data["id"] == second.id and told.data["instead"] == first.id
    assert "sha256" in told.data["detail"] or "zst" in told.data["detail"] or "digest" in told.data["detail"]
    # Its inbox is of the cut: what was read after it is read again.
    await here.saw(asked, printed("got three as 3"))
    await here.cancel(asked, 0.0)
    await here.ended(asked)
    for box in await parts.driver.list():
        await parts.driver.remove(box.sandbox_id)


async def test_an_archive_that_is_away_loses_nothing(here: Stage, short_dir: Path) -> None:
    async with asleep_and_its_host_gone(here) as slept:
        (short_dir / "archive").rename(short_dir / "unmounted")
        _, parts = here.elsewhere(short_dir / "e", lease_s=1.0)
        await here.send(slept, "2", "two")
        before = (await here.parts.executions.get(slept.id)).epoch
        waiting = await here.until(slept, lambda record: record.epoch > before + 1)  # tried, and tried again
        assert waiting.state is S.QUEUED
        (short_dir / "unmounted").rename(short_dir / "archive")
        await here.saw(slept, printed("got two as 2"))
        await here.cancel(slept, 0.0)
        await here.ended(slept)
        for box in await parts.driver.list():
            await parts.driver.remove(box.sandbox_id)


async def test_a_full_archive_is_named_and_taken_up_when_there_is_room(
    redis_url: str, installation: str, short_dir: Path
) -> None:
    small = short_dir / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "carrel-test", small], check=True)
    try:
        async with stage(
            redis_url, installation, short_dir / "h", archive=archive_at(f"file://{small}", "test")
        ) as here:
            (small / "others").write_bytes(bytes(1 << 20))
            worker = here.work()
            asked = await begin(here)
            await cut(here, asked)
            while "no space left for the archive" not in (await facts(here)):
                await asyncio.sleep(0.05)
            await here.send(asked, "1", "one")
            await here.saw(asked, printed("got one as 1"))  # the work goes on
            (small / "others").unlink()
            await archived(here, asked)
            while await facts(here):
                await asyncio.sleep(0.05)
            await here.cancel(asked, 0.0)
            await here.ended(asked)
            await here.idle(worker)
    finally:
        subprocess.run(["umount", small], check=True)


async def facts(here: Stage) -> str:
    worker, _ = here.workers[0]
    return worker.archive_failure


async def test_layers_are_few_and_stay_while_others_build_on_them(here: Stage, archive: Archive) -> None:
    worker = here.work()
    asked = await begin(here)
    taken: list[Snapshot] = []
    for number in range(MOST_LAYERS + 1):
        await here.send(asked, f"{number}", "more")
        await here.saw(asked, printed(f"as {number + 1}"))
        taken.append(await cut(here, asked, name=f"n{number}"))
        await archived(here, asked)
    manifests = [next(one for one in names(archive) if f"{each.id}/on-" in one) for each in taken]
    bases = [one.rpartition("/on-")[2].removesuffix(".json") for one in manifests]
    assert bases == ["nothing", *(one.id for one in taken[: MOST_LAYERS - 1]), "nothing"]
    for one in taken[:3]:
        await here.parts.snapshots.remove(one.id)
    aged = older(here.parts)
    await ArchiveSweep(aged).sweep(trusted=True)
    assert len([one for one in names(archive) if one.endswith(".json")]) == len(taken)
    for one in taken[3:-1]:
        await here.parts.snapshots.remove(one.id)
    await ArchiveSweep(aged).sweep(trusted=False)
    assert len([one for one in names(archive) if one.endswith(".json")]) == len(taken), "an empty store proves nothing"
    await ArchiveSweep(aged).sweep(trusted=True)
    assert [one for one in names(archive) if one.endswith(".json")] == manifests[-1:]
    await here.cancel(asked, 0.0)
    await here.ended(asked)
    await here.idle(worker)
    await here.parts.executions.remove(asked.id)
    other = await here.submit()  # the store knows something
    await ArchiveSweep(aged).sweep(trusted=True)
    assert names(archive) == []
    await here.cancel(other)


def older(parts: Parts) -> Parts:
    """With no grace."""
    return replace(parts, settings=replace(parts.settings, orphan_grace_s=0.0, cut_limit_s=0.0))


async def test_one_that_the_archive_lost_is_sent_again(here: Stage, archive: Archive) -> None:
    here.work()
    asked = await begin(here)
    await cut(here, asked)
    await archived(here, asked)
    for name in names(archive):
        archive.remove(name)
    await ArchiveSweep(older(here.parts)).sweep(trusted=True)
    while len(names(archive)) < 2:
        await asyncio.sleep(0.02)
    await archived(here, asked)
    await here.cancel(asked, 0.0)
    await here.ended(asked)


async def all_read(here: Stage, execution: Execution, after: int = 0, limit: int = 7) -> list[Event]:
    told: list[Event] = []
    cursor = Cursor(1, after)
    while True:
        page = await here.parts.history.read(execution.id, cursor, limit=limit)
        told += page.events
        if page.closed:
            return told
        cursor = page.next


async def test_a_history_in_the_archive_is_read_by_the_same_cursor(here: Stage, archive: Archive) -> None:
    worker = here.work()
    asked = await here.bash("for n in $(seq 500); do echo line $n; done; printf '\\xff'")
    await here.ended(asked)
    await here.idle(worker)
    before = await here.history(asked)
    with pytest.raises(Conflict):
        await here.parts.history.hand_over((await here.submit(harness="command", command=("sleep", "9"))).id)
    sweep = ArchiveSweep(replace(here.parts, settings=replace(here.parts.settings, history_archive_after_s=1e-6)))
    await sweep.sweep(trusted=True)
    record = await here.parts.executions.get(asked.id)
    assert record.history_archived and len(names(archive, "histories/")) == 2
    assert await all_read(here, asked) == before and stdout(before).endswith(b"line 500\n\xff")
    for after in (1, 3, len(before) - 1, len(before)):
        assert await all_read(here, asked, after) == before[after:]
    followed = [event async for page in here.parts.history.follow(asked.id, Cursor(1, 2)) for event in page.events]
    assert followed == before[2:]
    tail = await here.parts.history.tail(asked.id)
    assert (tail.tail, tail.closed) == (len(before), True)
    await sweep.sweep(trusted=True)  # again is the same again
    assert await all_read(here, asked) == before
    await here.parts.executions.remove(asked.id)
    await ArchiveSweep(older(here.parts)).sweep(trusted=True)
    assert names(archive, "histories/") == []
