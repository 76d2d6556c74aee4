"""The contract of `orchestrator.snapshots.Snapshots`, and of the appends that write one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from orchestrator.errors import BadInput, Conflict, NameTaken, NotFound
from orchestrator.events import Entry
from orchestrator.execution import HibernateWant, PauseWant, SnapshotWant, Spec
from orchestrator.history import Change
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.snapshots import Cut, Origin, Why
from tests.contracts.redis_store import SUCCEEDED, Store, snapshot_of

T = "default"


class TestWriting:
    async def test_as_it_was_written(self, store: Store) -> None:
        lease = await store.running()
        written = await store.cut(
            lease,
            "snp_0001",
            own=3,
            why=Why.PERIODIC,
            cut=Cut(1, 4, 7, 2, 1),
            name="before",
            labels={"k": "ü"},
            parent="snp_0000",
            size_bytes=8 << 60,
            files=5,
            digest="ab",
        )
        assert await store.snapshots.get("snp_0001", tenant=T) == written
        assert (await store.executions.get("exe_a")).snapshot_id == "snp_0001"
        assert (await store.snapshots.list(tenant=T, execution_id="exe_a")).snapshots == (written,)

    async def test_the_same_append_again_writes_nothing(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_0001", own=3)
        await store.cut(lease, "snp_0001", own=3)
        assert len((await store.snapshots.list(tenant=T)).snapshots) == 1
        assert len(await store.told("snapshot.created")) == 1

    async def test_an_id_is_written_once(self, store: Store) -> None:
        lease = await store.running()
        first = await store.cut(lease, "snp_0001", own=3)
        tail = (await store.executions.get("exe_a")).tail
        with pytest.raises(Conflict):
            await store.cut(lease, "snp_0001", own=4, name="other")
        assert await store.snapshots.get("snp_0001", tenant=T) == first
        assert (await store.executions.get("exe_a")).tail == tail

    async def test_a_refused_append_leaves_none(self, store: Store) -> None:
        lease = await store.running()
        with pytest.raises(Conflict):
            await store.history.append(
                lease,
                attempt=1,
                own=3,
                change=Change(
                    trigger=Trigger.PAUSE, expects=ExecutionState.PAUSED, snapshot=snapshot_of(lease, "snp_0001")
                ),
            )
        with pytest.raises(NotFound):
            await store.snapshots.get("snp_0001", tenant=T)

    async def test_with_the_cut_of_a_hibernation_and_with_the_end(self, store: Store) -> None:
        lease = await store.running()
        await store.executions.want("exe_a", HibernateWant("h1"))
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0, snapshot=snapshot_of(lease, "snp_0001"))
        asleep = await store.executions.get("exe_a")
        assert (asleep.state, asleep.snapshot_id) == (ExecutionState.HIBERNATED, "snp_0001")
        assert asleep.wants.hibernate is None
        await store.executions.want("exe_a", PauseWant("p1", paused=False))
        lease = (await store.claimed()).lease
        await store.place(lease, own=1, attempt=2)
        await store.move(lease, Trigger.HARNESS_STARTED, own=2, attempt=2)
        await store.move(lease, Trigger.EXITED, own=3, attempt=2)
        await store.move(
            lease, Trigger.STOPPED, own=4, attempt=2, outcome=SUCCEEDED, snapshot=snapshot_of(lease, "snp_0002")
        )
        ended = await store.executions.get("exe_a")
        assert (ended.state, ended.snapshot_id) == (ExecutionState.FINISHED, "snp_0002")

    async def test_odd_ids_and_names_are_refused(self, store: Store) -> None:
        lease = await store.running()
        for wrong in ("", "snp_", "exe_a", "snp_a/b", "snp_ä", "snp_" + "a" * 65, "snp_a\n"):
            with pytest.raises(BadInput):
                await store.cut(lease, wrong, own=3)
            with pytest.raises(BadInput):
                await store.executions.want("exe_a", SnapshotWant(wrong))
        for name in ("a\tb", "x" * 129, "snp_1"):
            with pytest.raises(BadInput) as refused:
                await store.executions.want("exe_a", SnapshotWant("snp_1", name=name))
            assert refused.value.field == "name"


class TestWishes:
    async def test_a_wish_stands_until_its_snapshot_is_there(self, store: Store) -> None:
        lease = await store.running()
        wish = SnapshotWant("snp_0001", Why.FORK, "n", {"k": "v"})
        assert (await store.executions.want("exe_a", wish)).wants.snapshots == (wish,)
        await store.executions.want("exe_a", wish)
        await store.executions.want("exe_a", SnapshotWant("snp_0002"))
        assert len(await store.told("execution.wanted")) == 2
        await store.cut(lease, "snp_0001", own=3)
        after = await store.executions.get("exe_a")
        assert after.wants.snapshots == (SnapshotWant("snp_0002"),)
        again = await store.executions.want("exe_a", wish)
        assert again == after

    async def test_one_that_failed_is_done(self, store: Store) -> None:
        lease = await store.running()
        await store.executions.want("exe_a", SnapshotWant("snp_0001"))
        await store.history.append(
            lease,
            attempt=1,
            own=3,
            entries=[Entry("snapshot.failed", {"id": "snp_0001"})],
            change=Change(done_wants=("snp_0001",)),
        )
        assert (await store.executions.get("exe_a")).wants.snapshots == ()

    async def test_a_written_one_is_not_asked_for_again_however_long_ago(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_0001", own=3)
        after = await store.executions.want("exe_a", SnapshotWant("snp_0001"))
        assert after.wants.snapshots == ()

    async def test_sixteen_at_most(self, store: Store) -> None:
        await store.running()
        for n in range(16):
            await store.executions.want("exe_a", SnapshotWant(f"snp_{n}"))
        with pytest.raises(Exception, match="16 snapshots"):
            await store.executions.want("exe_a", SnapshotWant("snp_16"))

    async def test_a_taken_name_is_refused_before_the_work(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_0001", own=3, name="n")
        with pytest.raises(NameTaken) as refused:
            await store.executions.want("exe_a", SnapshotWant("snp_0002", name="n"))
        assert refused.value.data["id"] == "snp_0001"

    async def test_what_sleeps_or_has_ended_names_its_newest(self, store: Store) -> None:
        lease = await store.running()
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0, snapshot=snapshot_of(lease, "snp_0001"))
        with pytest.raises(Conflict) as asleep:
            await store.executions.want("exe_a", SnapshotWant("snp_0002"))
        assert asleep.value.data["snapshot"] == "snp_0001"
        assert "snp_0001" in asleep.value.data["remedy"]
        other = await store.running("exe_b")
        await store.cut(other, "snp_0003", own=3)
        await store.finish(other, own=4)
        with pytest.raises(Conflict) as ended:
            await store.executions.want("exe_b", SnapshotWant("snp_0004"))
        assert (ended.value.data["state"], ended.value.data["snapshot"]) == ("FINISHED", "snp_0003")

    async def test_what_has_not_run_says_when(self, store: Store) -> None:
        await store.submitted()
        with pytest.raises(Conflict) as refused:
            await store.executions.want("exe_a", SnapshotWant("snp_0001"))
        assert "snapshot" not in refused.value.data
        assert refused.value.data["remedy"] == "ask again when it runs"

    async def test_those_left_open_are_told_at_the_end_and_at_the_sleep(self, store: Store) -> None:
        lease = await store.running()
        await store.executions.want("exe_a", SnapshotWant("snp_0001"))
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0, snapshot=snapshot_of(lease, "snp_0002"))
        other = await store.running("exe_b")
        await store.executions.want("exe_b", SnapshotWant("snp_0003", Why.FORK))
        await store.finish(other, own=3)
        for name, snapshot_id in (("exe_a", "snp_0001"), ("exe_b", "snp_0003")):
            (failed,) = await store.told("snapshot.failed", execution_id=name)
            assert failed.data["id"] == snapshot_id
            assert (await store.executions.get(name)).wants.snapshots == ()


class TestHibernateWish:
    async def test_it_stands_until_it_sleeps(self, store: Store) -> None:
        lease = await store.running()
        assert (await store.executions.want("exe_a", HibernateWant("h1"))).wants.hibernate == "h1"
        await store.history.append(lease, attempt=1, own=3, change=Change(done_wants=("h1",)))
        assert (await store.executions.get("exe_a")).wants.hibernate is None

    async def test_what_sleeps_has_what_was_asked_for(self, store: Store) -> None:
        lease = await store.running()
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.move(lease, Trigger.CUT, own=4, seen=0)
        after = await store.executions.want("exe_a", HibernateWant("h1"))
        assert (after.state, after.wants.hibernate) == (ExecutionState.HIBERNATED, None)
        assert await store.told("execution.wanted") == []

    async def test_resume_takes_it_back(self, store: Store) -> None:
        await store.running()
        await store.executions.want("exe_a", HibernateWant("h1"))
        after = await store.executions.want("exe_a", PauseWant("p1", paused=False))
        assert after.wants.hibernate is None

    async def test_a_resume_during_the_transition_is_not_lost(self, store: Store) -> None:
        lease = await store.running()
        await store.move(lease, Trigger.HIBERNATE, own=3)
        await store.executions.want("exe_a", PauseWant("p1", paused=False))
        done = await store.move(lease, Trigger.CUT, own=4, seen=0, snapshot=snapshot_of(lease, "snp_0001"))
        assert done.state is ExecutionState.QUEUED
        woken = (await store.claimed("w2")).execution
        assert (woken.id, woken.wants.pause) == ("exe_a", None)

    async def test_what_has_not_run_or_has_ended_cannot(self, store: Store) -> None:
        await store.submitted()
        with pytest.raises(Conflict):
            await store.executions.want("exe_a", HibernateWant("h1"))


class TestFinding:
    async def test_by_id_prefix_and_name(self, store: Store) -> None:
        lease = await store.running()
        one = await store.cut(lease, "snp_01aaa", own=3, name="one")
        two = await store.cut(lease, "snp_01aab", own=4, name="two words")
        for ref, wanted in (("snp_01aaa", one), ("snp_01aab", two), ("one", one), ("two words", two)):
            assert await store.snapshots.get(ref, tenant=T) == wanted
        with pytest.raises(BadInput) as ambiguous:
            await store.snapshots.get("snp_01aa", tenant=T)
        assert (ambiguous.value.field, ambiguous.value.data["matches"]) == ("snapshot", 2)
        for ref in ("snp_", "snp_01", "snp_02aa", "on", "two", "snp_01aaaa"):
            with pytest.raises(NotFound):
                await store.snapshots.get(ref, tenant=T)

    async def test_two_of_one_name_are_ambiguous(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_0001", own=3, name="n")
        await store.cut(lease, "snp_0002", own=4, name="n")  # both were asked for before either was there
        with pytest.raises(BadInput):
            await store.snapshots.get("n", tenant=T)

    async def test_another_tenants_is_not_there(self, store: Store) -> None:
        lease = await store.running(tenant="t1")
        await store.cut(lease, "snp_0001", own=3, name="n")
        assert (await store.snapshots.get("n", tenant="t1")).tenant == "t1"
        for ref in ("snp_0001", "snp_000", "n"):
            with pytest.raises(NotFound):
                await store.snapshots.get(ref, tenant=T)
        assert (await store.snapshots.list(tenant=T, execution_id="exe_a")).snapshots == ()

    async def test_pages_newest_first(self, store: Store) -> None:
        lease = await store.running()
        for own, n in enumerate((3, 1, 2, 5, 4), 3):  # an id is made when it is asked for, the snapshot later
            await store.cut(lease, f"snp_{n}", own=own)
        other = await store.running("exe_b")
        await store.cut(other, "snp_6", own=3)
        for execution_id, wanted in (("exe_a", [4, 5, 2, 1, 3]), ("", [6, 5, 4, 3, 2, 1]), ("exe_b", [6])):
            seen: list[str] = []
            cursor = ""
            while True:
                page = await store.snapshots.list(tenant=T, execution_id=execution_id, cursor=cursor, limit=2)
                assert 0 < len(page.snapshots) <= 2
                seen += [snapshot.id for snapshot in page.snapshots]
                if not (cursor := page.next):
                    break
            assert seen == [f"snp_{n}" for n in wanted]

    async def test_a_page_goes_on_where_one_was_removed(self, store: Store) -> None:
        lease = await store.running()
        for n in range(1, 6):
            await store.cut(lease, f"snp_{n}", own=2 + n)
        page = await store.snapshots.list(tenant=T, execution_id="exe_a", limit=2)
        await store.snapshots.remove("snp_4")
        rest = await store.snapshots.list(tenant=T, execution_id="exe_a", cursor=page.next)
        assert [snapshot.id for snapshot in rest.snapshots] == ["snp_3", "snp_2", "snp_1"]

    async def test_a_foreign_cursor_is_refused(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3)
        await store.cut(lease, "snp_2", own=4)
        of_tenant = (await store.snapshots.list(tenant=T, limit=1)).next
        for cursor in ("x", "YWZ0ZXI6eA", of_tenant):
            with pytest.raises(BadInput):
                await store.snapshots.list(tenant=T, execution_id="exe_a", cursor=cursor)

    async def test_everything_and_on_host(self, store: Store) -> None:
        lease = await store.running()
        one = await store.cut(lease, "snp_1", own=3)
        two = await store.cut(lease, "snp_2", own=4, host="h2")
        assert await store.snapshots.on_host("h1") == [one]
        assert await store.snapshots.on_host("h2") == [two]
        assert [snapshot async for snapshot in store.snapshots.everything()] == [one, two]


class TestChanging:
    async def test_labels_and_names(self, store: Store) -> None:
        lease = await store.running()
        one = await store.cut(lease, "snp_1", own=3, name="n", labels={"a": "1"})
        await store.cut(lease, "snp_2", own=4)
        assert await store.snapshots.label("snp_1", name=None, labels=None) == one
        assert await store.snapshots.label("snp_1", name="m", labels=None) == replace(one, name="m")
        assert await store.snapshots.label("snp_1", name="m", labels={}) == replace(one, name="m", labels={})
        with pytest.raises(NotFound):
            await store.snapshots.get("n", tenant=T)
        with pytest.raises(NameTaken):
            await store.snapshots.label("snp_2", name="m", labels=None)
        await store.snapshots.label("snp_1", name="", labels={"b": "2"})
        after = await store.snapshots.label("snp_2", name="m", labels=None)
        assert await store.snapshots.get("m", tenant=T) == after
        with pytest.raises(NotFound):
            await store.snapshots.label("snp_3", name="x", labels=None)

    async def test_what_is_known_later(self, store: Store) -> None:
        lease = await store.running()
        one = await store.cut(lease, "snp_1", own=3)
        await store.snapshots.measured("snp_1", digest="d", size_bytes=(8 << 60) + 1, files=7)
        await store.snapshots.archived("snp_1")
        assert await store.snapshots.get("snp_1", tenant=T) == replace(
            one, digest="d", size_bytes=(8 << 60) + 1, files=7, archived=True
        )
        with pytest.raises(NotFound):
            await store.snapshots.measured("snp_2", digest="d", size_bytes=1, files=1)
        with pytest.raises(NotFound):
            await store.snapshots.archived("snp_2")

    async def test_removed_is_nowhere(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3, name="n")
        two = await store.cut(lease, "snp_2", own=4, parent="snp_1")
        before = {key async for key in keys_of(store)}
        await store.snapshots.remove("snp_1")
        await store.snapshots.remove("snp_1")
        assert (await store.snapshots.list(tenant=T)).snapshots == (two,)
        assert await store.snapshots.on_host("h1") == [two]
        with pytest.raises(NotFound):
            await store.snapshots.get("n", tenant=T)
        assert {key async for key in keys_of(store)} < before

    async def test_the_newest_of_what_has_not_ended_stays(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3)
        await store.cut(lease, "snp_2", own=4)
        with pytest.raises(Conflict) as refused:
            await store.snapshots.remove("snp_2")
        assert refused.value.data["execution"] == "exe_a"
        await store.finish(lease, own=5)
        await store.snapshots.remove("snp_2")
        assert (await store.executions.get("exe_a")).snapshot_id == "snp_1"
        await store.snapshots.remove("snp_1")
        assert (await store.executions.get("exe_a")).snapshot_id is None


async def keys_of(store: Store) -> AsyncIterator[bytes]:
    """Every key of this installation."""
    cursor = "0"
    while True:
        told, page = await store.server.ask("SCAN", cursor, "MATCH", f"{store.keys.prefix}*", "COUNT", 1000)
        for key in page:
            yield key
        cursor = told.decode()
        if cursor == "0":
            return


class TestRepair:
    async def indexes(self, store: Store) -> dict[bytes, object]:
        return {
            key: await store.server.ask("ZRANGE", key, 0, -1, "WITHSCORES")
            async for key in keys_of(store)
            if b"index:snapshots" in key or b"index:forks" in key
        }

    async def held(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3, name="n")
        await store.cut(lease, "snp_2", own=4, host="h2")
        await store.executions.submit(Spec(origin=Origin("exe_a", "snp_1", 4)), execution_id="exe_b")

    async def test_every_list_can_be_built_again(self, store: Store) -> None:
        await self.held(store)
        assert await store.executions.repair() == []
        before = await self.indexes(store)
        assert len(before) == 8  # two hosts
        await store.server.ask("DEL", *before)
        done = await store.executions.repair()
        assert await self.indexes(store) == before
        assert {d.execution_id for d in done} == {"snp_1", "snp_2", "exe_b"}
        assert await store.executions.repair() == []

    async def test_what_points_to_nothing_is_taken_out(self, store: Store) -> None:
        await self.held(store)
        before = await self.indexes(store)
        for key, member in (
            (store.keys.index("snapshots", "all"), "snp_9"),
            (store.keys.index("snapshots", "tenant", T), "snp_9"),
            (store.keys.index("snapshots", "tenant", "t9"), "snp_1"),
            (store.keys.index("snapshots", "host", "h2"), "snp_1"),
            (store.keys.index("snapshots", "names", T), "other\tsnp_1"),
            (store.keys.snapshots_of("exe_b"), "snp_1"),
        ):
            await store.server.ask("ZADD", key, 0, member)
        assert len(await store.executions.repair()) == 6
        assert await self.indexes(store) == before
