"""The contract of finding, listing, counting and removing executions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.errors import BadInput, Conflict, NotFound
from orchestrator.events import Cursor
from orchestrator.execution import CancelWant, Outcome, OutcomeKind, Reason
from orchestrator.executions import Filter
from orchestrator.intents import Decision, Effect
from orchestrator.lifecycle import ExecutionState, Trigger
from tests.contracts.redis_store import Store


class TestResolve:
    async def test_by_id_prefix_and_name(self, store: Store) -> None:
        await store.submitted("exe_01aaaa1", name="fox")
        await store.submitted("exe_01aaaa2")
        for ref in ("exe_01aaaa1", "fox"):
            assert (await store.executions.resolve(ref, tenant="default")).id == "exe_01aaaa1"
        assert (await store.executions.resolve("exe_01aaaa2", tenant="default")).id == "exe_01aaaa2"
        with pytest.raises(BadInput) as refused:
            await store.executions.resolve("exe_01aa", tenant="default")
        assert (refused.value.field, refused.value.data["matches"]) == ("id", 2)
        await store.submitted("exe_01bbbb1")
        assert (await store.executions.resolve("exe_01bb", tenant="default")).id == "exe_01bbbb1"

    async def test_what_is_not_there(self, store: Store) -> None:
        await store.submitted("exe_01aaaa1", name="fox")
        for ref in ("exe_01", "exe_01ab", "exe_02aaaa", "wolf", ""):
            with pytest.raises(NotFound):
                await store.executions.resolve(ref, tenant="default")
        for ref in ("exe_01aaaa1", "exe_01aa", "fox"):
            with pytest.raises(NotFound):
                await store.executions.resolve(ref, tenant="other")

    async def test_a_name_is_its_newest_holders(self, store: Store) -> None:
        await store.submitted("exe_1", name="fox")
        await store.executions.want("exe_1", CancelWant("c", 0))
        await store.submitted("exe_2", name="fox")
        assert (await store.executions.resolve("fox", tenant="default")).id == "exe_2"


class TestList:
    async def test_newest_first_in_pages(self, store: Store) -> None:
        ids = [f"exe_{n:03}" for n in range(250)]
        for id in ids:
            await store.submitted(id)
        seen, cursor = [], ""
        while True:
            page = await store.executions.list(Filter(), tenant="default", cursor=cursor, limit=60)
            seen += [e.id for e in page.executions]
            cursor = page.next
            if not cursor:
                break
        assert seen == ids[::-1]

    async def test_filters(self, store: Store) -> None:
        lease = await store.running("exe_1", labels={"team": "a", "x": "1"})
        await store.submitted("exe_2", labels={"team": "a"}, name="two")
        await store.submitted("exe_3", labels={"team": "b"}, harness="command")
        await store.submitted("exe_4", tenant="other", labels={"team": "a"})
        await store.executions.want("exe_3", CancelWant("c", 0))

        async def ids(**wanted: object) -> list[str]:
            page = await store.executions.list(Filter(**wanted), tenant="default")  # type: ignore[arg-type]
            return [e.id for e in page.executions]

        assert await ids() == ["exe_3", "exe_2", "exe_1"]
        assert await ids(labels={"team": "a"}) == ["exe_2", "exe_1"]
        assert await ids(labels={"team": "a", "x": "1"}) == ["exe_1"]
        assert await ids(states=frozenset({ExecutionState.RUNNING, ExecutionState.QUEUED})) == ["exe_2", "exe_1"]
        assert await ids(outcomes=frozenset({OutcomeKind.CANCELLED})) == ["exe_3"]
        assert await ids(name="two") == ["exe_2"]
        assert await ids(harness="command") == ["exe_3"]
        await store.finish(lease, own=3)
        assert await ids(outcomes=frozenset({OutcomeKind.SUCCEEDED})) == ["exe_1"]

    async def test_a_cursor_of_somebody_else(self, store: Store) -> None:
        with pytest.raises(BadInput) as refused:
            await store.executions.list(Filter(), tenant="default", cursor="nonsense")
        assert refused.value.field == "cursor"


class TestRemove:
    async def test_nothing_is_left(self, store: Store) -> None:
        await store.submitted("exe_b")
        lease = (await store.claimed()).lease
        await store.executions.release(lease)
        everything_before = set(await store.server.ask("KEYS", f"{store.keys.prefix}*"))
        await store.executions.want("exe_b", CancelWant("c", 0))
        await store.submitted("exe_a", name="fox", labels={"l": "1"})
        await store.history.send("exe_a", "m1", b"x")
        await store.executions.want("exe_a", CancelWant("c", 0))
        await store.executions.remove("exe_a")
        await store.executions.remove("exe_a")
        left = [key.decode() for key in await store.server.ask("KEYS", f"{store.keys.prefix}*")]
        assert [key for key in left if "exe_a" in key] == []
        assert await store.server.ask("HLEN", store.keys.names) == 0
        assert [key for key in left if "label" in key] == []
        assert everything_before
        with pytest.raises(NotFound):
            await store.executions.get("exe_a")
        with pytest.raises(NotFound):
            await store.history.read("exe_a", Cursor())

    async def test_only_what_has_ended(self, store: Store) -> None:
        await store.submitted()
        with pytest.raises(Conflict):
            await store.executions.remove("exe_a")


class TestCounts:
    async def test_count(self, store: Store) -> None:
        await store.running("exe_1")
        await store.submitted("exe_2")
        await store.submitted("exe_3", tenant="other")
        counts = await store.executions.count()
        assert {state: n for state, n in counts.items() if n} == {
            ExecutionState.RUNNING: 1,
            ExecutionState.QUEUED: 2,
        }

    async def test_tally(self, store: Store) -> None:
        lease = await store.running("exe_1", labels={"team": "a"})
        await store.finish(lease, own=3)
        lease = await store.running("exe_2", labels={"team": "a"}, harness="command")
        await store.finish(lease, own=3, outcome=Outcome(OutcomeKind.FAILED, Reason.OOM))
        lease = await store.running("exe_3", tenant="other")
        await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1)
        lease = (await store.claimed()).lease
        await store.place(lease, own=1, attempt=2)
        await store.move(lease, Trigger.HARNESS_STARTED, own=2, attempt=2, started=True)
        await store.finish(lease, own=3)
        since = datetime.now(UTC) - timedelta(minutes=1)
        (all,) = await store.executions.tally(since)
        assert (all.group, all.completed, all.resumed) == ("", 3, 1)
        assert dict(all.by_outcome) == {"SUCCEEDED": 2, "FAILED": 1}
        assert dict(all.by_reason) == {"exit_code": 2, "oom": 1}
        by_team = await store.executions.tally(since, by="label:team")
        assert [(t.group, t.completed) for t in by_team] == [("", 1), ("a", 2)]
        by_harness = await store.executions.tally(since, by="harness", tenant="default")
        assert [(t.group, t.completed) for t in by_harness] == [("bash", 1), ("command", 1)]
        assert await store.executions.tally(datetime.now(UTC) + timedelta(minutes=1)) == []
        with pytest.raises(BadInput):
            await store.executions.tally(since, by="nonsense")

    async def test_the_tally_counts_what_nobody_has_settled(self, store: Store) -> None:
        ended = await store.running("exe_1", labels={"team": "a"})
        for key, effect in (("sent", Effect.ONCE), ("built", Effect.UNKNOWN), ("read", Effect.NONE)):
            told = {"attempt": 1, "kind": "bash", "effect": effect, "summary": "", "digest": "d"}
            await store.intents.begin(ended, key=key, run="r", **told)  # type: ignore[arg-type]
        await store.finish(ended, own=3)
        await store.finish(await store.running("exe_2", labels={"team": "b"}), own=3)
        since = datetime.now(UTC) - timedelta(minutes=1)
        assert {t.group: t.in_doubt for t in await store.executions.tally(since, by="label:team")} == {"a": 2, "b": 0}
        await store.intents.settle("exe_1", "sent", Decision.DONE, result="", by="eva")
        await store.intents.settle("exe_1", "built", Decision.RETRY, result="", by="eva")
        assert [t.in_doubt for t in await store.executions.tally(since)] == [0]

    async def test_everything(self, store: Store) -> None:
        ids = {f"exe_{n:03}" for n in range(230)}
        for id in ids:
            await store.submitted(id, tenant=f"t{id[-1]}")
        seen = [e.id async for e in store.executions.everything()]
        assert len(seen) == len(ids)
        assert set(seen) == ids

    async def test_owner_of_sandbox(self, store: Store) -> None:
        lease = await store.running("exe_1")
        found = await store.executions.owner_of_sandbox("sbx_exe_1_1")
        assert found is not None
        assert found.id == "exe_1"
        assert await store.executions.owner_of_sandbox("sbx_other") is None
        await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1)
        assert await store.executions.owner_of_sandbox("sbx_exe_1_1") is None
        lease = (await store.claimed()).lease
        await store.place(lease, own=1, attempt=2)
        assert await store.executions.owner_of_sandbox("sbx_exe_1_1") is None
        assert await store.executions.owner_of_sandbox("sbx_exe_1_2") is not None


class TestEndedBefore:
    async def test_longest_ago_first(self, store: Store) -> None:
        for n in (3, 1, 2):
            await store.submitted(f"exe_{n}")
            await store.executions.want(f"exe_{n}", CancelWant("c", 0))
            at = datetime(2026, 1, n, tzinfo=UTC)
            index = store.keys.index("finished")
            await store.server.ask("ZADD", index, round(at.timestamp() * 1000), f"exe_{n}")
        await store.submitted("exe_4")
        assert await store.executions.ended_before(datetime(2026, 1, 3, tzinfo=UTC)) == ["exe_1", "exe_2"]
        assert await store.executions.ended_before(datetime(2027, 1, 1, tzinfo=UTC), limit=1) == ["exe_1"]
