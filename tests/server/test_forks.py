"""Forks, rewinds and the tree over HTTP: what a fork is made of, once per key; what it is made from works on."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator import errors
from orchestrator.lifecycle import ExecutionState
from orchestrator.server.parts import ServerSettings
from tests.server.conftest import Api, until, with_settings


@pytest.fixture
def settings() -> ServerSettings:
    return with_settings(cut_wait_s=20.0)


async def test_of_a_snapshot_with_changes(api: Api) -> None:
    lease = await api.running(
        name="first",
        labels={"a": "1", "b": "1"},
        env={"A": "1"},
        resources={"cpus": 2},
        limits={"deadline_s": 100, "budget_usd": 5},
        egress=["a.example"],
    )
    taken = await api.cut(lease, own=3)
    execution = api.client.execution(lease.execution_id)
    await execution.set_egress(["b.example"])
    (fork,) = await execution.fork(
        snapshot=taken.id,
        name="second",
        labels={"b": "2"},
        env={"B": "2"},
        resources={"memory_bytes": 64 << 20},
        limits={"deadline_s": None},
        budget_usd=1,
    )
    record = await fork.refresh()
    assert (record.name, record.labels, record.env) == ("second", {"a": "1", "b": "2"}, {"A": "1", "B": "2"})
    assert (record.resources.cpus, record.resources.memory_bytes) == (2, 64 << 20)
    assert (record.limits.deadline_s, record.limits.budget_usd, record.egress.allow) == (None, 1, ["b.example"])
    assert record.forked_from is not None and not record.forked_from.rewind
    assert (record.forked_from.execution_id, record.forked_from.snapshot_id) == (lease.execution_id, taken.id)
    assert record.command == ["true"] and record.state == "QUEUED"
    assert (await execution.refresh()).state == "RUNNING"


async def test_from_now_cuts_and_works_on(api: Api) -> None:
    lease = await api.running()
    execution = api.client.execution(lease.execution_id)
    async with api.cutting(lease, own=3):
        forks = await execution.fork(count=5, name="n", key="once")
        again = await execution.fork(count=5, name="n", key="once")
        with pytest.raises(errors.KeyReused):
            await execution.fork(count=5, name="m", key="once")
    assert [fork.id for fork in forks] == [fork.id for fork in again]
    records = [await fork.refresh() for fork in forks]
    assert [record.name for record in records] == [f"n-{at}" for at in range(1, 6)]
    # One cut for all of them, and the same when asked again.
    cuts = [one async for one in execution.snapshots() if one.why == "fork"]
    assert {record.forked_from.snapshot_id for record in records if record.forked_from} == {cuts[0].id}
    assert (await execution.refresh()).state == "RUNNING"


async def test_of_what_has_ended(api: Api) -> None:
    lease = await api.running()
    execution = api.client.execution(lease.execution_id)
    taken = await api.cut(lease, own=3)
    await api.store.finish(lease, own=4)
    (fork,) = await execution.fork()
    origin = (await fork.refresh()).forked_from
    assert origin is not None and origin.snapshot_id == taken.id
    # One that has not begun has the files it will begin with.
    (second,) = await fork.fork()
    origin = (await second.refresh()).forked_from
    assert origin is not None and (origin.execution_id, origin.snapshot_id) == (lease.execution_id, taken.id)


async def test_where_there_is_nothing_to_fork(api: Api) -> None:
    queued = api.client.execution(await api.submit())
    with pytest.raises(errors.Conflict, match="has no snapshot"):
        await queued.fork()
    with pytest.raises(errors.NotFound):
        await queued.fork(snapshot="snp_01none")


async def test_a_fork_from_now_that_ends_meanwhile_takes_the_last(api: Api) -> None:
    lease = await api.running()
    taken = await api.cut(lease, own=3)
    forking = asyncio.create_task(api.client.execution(lease.execution_id).fork())
    await until(lambda: api.parts.holding > 0)
    await api.store.finish(lease, own=4)
    (fork,) = await forking
    origin = (await fork.refresh()).forked_from
    assert origin is not None and origin.snapshot_id == taken.id


async def test_another_tree_s_snapshot_is_refused(api: Api) -> None:
    lease = await api.running()
    taken = await api.cut(lease, own=3)
    other = api.client.execution(await api.submit())
    with pytest.raises(errors.BadInput, match="no kin") as refused:
        await other.fork(snapshot=taken.id)
    assert refused.value.field == "snapshot"
    with pytest.raises(errors.BadInput, match="no kin"):
        await other.rewind(taken.id)
    assert (await other.refresh()).state == "QUEUED"  # nothing was ended for it


async def test_a_name_that_is_taken_says_what_was_made(api: Api) -> None:
    lease = await api.running()
    await api.cut(lease, own=3)
    await api.store.finish(lease, own=4)
    await api.submit(name="n-2")
    with pytest.raises(errors.NameTaken) as taken:
        await api.client.execution(lease.execution_id).fork(name="n", count=3)
    (made,) = taken.value.data["made"]
    assert (await api.client.get(made)).record.name == "n-1"  # type: ignore[union-attr]


async def test_rewind_takes_the_name(api: Api) -> None:
    lease = await api.running(name="work", labels={"a": "1"})
    taken = await api.cut(lease, own=3, name="good")
    execution = api.client.execution(lease.execution_id)
    rewinding = asyncio.create_task(execution.rewind("good", key="k"))
    while (await api.record(lease.execution_id)).wants.cancel is None:
        await asyncio.sleep(0.005)
    await api.store.finish(lease, own=4)
    back = await rewinding
    assert (await execution.rewind("good", key="k")).id == back.id
    record = (await api.client.get("work")).record
    assert record is not None and record.id == back.id and record.labels == {"a": "1"}
    assert record.forked_from is not None and record.forked_from.rewind
    assert record.forked_from.snapshot_id == taken.id
    assert (await execution.refresh()).state == ExecutionState.FINISHED
    # And on to a point of the one before.
    await back.cancel()
    assert (await (await back.rewind("good")).refresh()).name == "work"


async def test_what_lives_is_not_ended_for_a_rewind_that_cannot_be(api: Api) -> None:
    lease = await api.running(name="root")
    taken = await api.cut(lease, own=3)
    (fork,) = await api.client.execution(lease.execution_id).fork(snapshot=taken.id, name="fork")
    with pytest.raises(errors.Conflict, match="which is RUNNING"):
        await fork.rewind(taken.id)
    assert (await fork.refresh()).wants.cancel is None and (await fork.refresh()).state == "QUEUED"


async def test_the_tree(api: Api) -> None:
    lease = await api.running(name="root")
    first = await api.cut(lease, own=3)
    second = await api.cut(lease, own=4)
    root = api.client.execution(lease.execution_id)
    (fork,) = await root.fork(snapshot=first.id, name="a")
    forks = await root.fork(snapshot=second.id, name="b", count=2)
    (deep,) = await fork.fork(name="deep")
    for start in (root, fork, forks[1], deep):
        tree = await start.tree()
        assert tree.root == root.id
        assert {node.id for node in tree.executions} == {root.id, fork.id, deep.id, *(one.id for one in forks)}
        assert {node.name for node in tree.executions} == {"root", "a", "b-1", "b-2", "deep"}
        assert [one.id for one in tree.snapshots] == [first.id, second.id]
        edges = {(edge.kind, edge.parent, edge.child) for edge in tree.edges}
        assert edges == {
            ("taken", root.id, first.id),
            ("taken", root.id, second.id),
            ("forked", first.id, fork.id),
            ("forked", first.id, deep.id),
            *(("forked", second.id, one.id) for one in forks),
        }
    alone = await api.client.execution(await api.submit()).tree()
    assert (len(alone.executions), alone.snapshots, alone.edges) == (1, [], [])
