"""The contract of `Executions.submit` with an origin: forks, rewinds, what they take over and where they wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.errors import Conflict, Gone, KeyReused, NameTaken, NotFound
from orchestrator.events import Cursor, Event
from orchestrator.execution import CancelWant, Spec
from orchestrator.executions import Nothing
from orchestrator.history import Lease
from orchestrator.intents import Decision, Effect, IntentState
from orchestrator.lifecycle import ExecutionState, Trigger
from orchestrator.snapshots import Cut, Origin
from tests.contracts.redis_store import Store

T = "default"


def forked(parent: str = "exe_a", snapshot: str = "snp_1", *, rewind: bool = False, **spec: object) -> Spec:
    return replace(Spec(origin=Origin(parent, snapshot, 4, rewind)), **spec)  # type: ignore[arg-type]


async def begun(store: Store, lease: Lease, key: str, effect: Effect = Effect.ONCE) -> None:
    await store.intents.begin(
        lease, attempt=1, key=key, run="r", kind="bash", effect=effect, summary=key, digest=f"d-{key}"
    )


async def ended(store: Store, lease: Lease, key: str, result: str = "") -> None:
    await store.intents.finish(lease, key=key, run="r", ok=True, result=result)


async def cut_now(store: Store, lease: Lease, snapshot_id: str, *, own: int, intents: int = 0) -> None:
    tail = (await store.executions.get(lease.execution_id)).tail
    await store.cut(lease, snapshot_id, own=own, cut=Cut(1, tail, 0, 0, intents))


class TestFork:
    async def test_its_record_and_its_first_events(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3)
        made = (await store.executions.submit(forked(task="other"), execution_id="exe_b")).execution
        assert (made.state, made.attempt, made.host, made.snapshot_id) == (ExecutionState.QUEUED, 0, "h1", "snp_1")
        assert made.spec.origin == Origin("exe_a", "snp_1", 4)
        first, second = (await store.history.read("exe_b", Cursor())).events
        assert first.type == "execution.submitted"
        assert (second.type, second.data) == (
            "execution.forked",
            {"from": "exe_a", "snapshot": "snp_1", "seq": 4, "rewind": False},
        )

    async def test_a_lost_reply_is_answered_by_asking_again(self, store: Store) -> None:
        lease = await store.running()
        await begun(store, lease, "one")
        await cut_now(store, lease, "snp_1", own=3, intents=1)
        first = await store.executions.submit(forked(), execution_id="exe_b")
        assert await store.executions.submit(forked(), execution_id="exe_b") == first
        assert len(await store.intents.list("exe_b")) == 1
        await store.executions.submit(forked(), execution_id="exe_c", idempotency_key="k", body_digest="1")
        with pytest.raises(KeyReused):
            await store.executions.submit(forked(), execution_id="exe_d", idempotency_key="k", body_digest="2")

    async def test_many_at_once(self, store: Store) -> None:
        lease = await store.running()
        await begun(store, lease, "one")
        await ended(store, lease, "one", "done")
        await cut_now(store, lease, "snp_1", own=3, intents=1)
        await asyncio.gather(
            *(store.executions.submit(forked(), execution_id=f"exe_f{n:02}") for n in range(50)),
        )
        for n in range(50):
            (intent,) = await store.intents.list(f"exe_f{n:02}")
            assert (intent.state, intent.result) == (IntentState.DONE, "done")

    async def test_it_waits_where_the_snapshot_is(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3)
        await store.executions.submit(forked(), execution_id="exe_b")
        assert isinstance(await store.executions.claim("w2", "h2", lease_s=15), Nothing)
        assert (await store.claimed("w1", "h1")).execution.id == "exe_b"

    async def test_of_an_archived_one_it_waits_anywhere(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3)
        await store.snapshots.archived("snp_1")
        made = await store.executions.submit(forked(), execution_id="exe_b")
        assert made.execution.host is None
        assert (await store.claimed("w2", "h2")).execution.id == "exe_b"

    async def test_only_from_what_is_there(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3)
        await store.running("exe_b")
        for wrong in (forked(snapshot="snp_2"), forked("exe_b"), forked(tenant="t2")):
            with pytest.raises(NotFound) as refused:
                await store.executions.submit(wrong, execution_id="exe_c")
            assert refused.value.data["kind"] == "snapshot"
        with pytest.raises(NotFound):
            await store.executions.get("exe_c")

    async def test_what_it_begins_from_stays_until_it_has_its_own(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3)
        await store.finish(lease, own=4)
        await store.executions.submit(forked(), execution_id="exe_b")
        with pytest.raises(Conflict) as refused:
            await store.snapshots.remove("snp_1")
        assert refused.value.data["execution"] == "exe_b"
        fork = (await store.claimed()).lease
        await store.place(fork, own=1)
        await store.move(fork, Trigger.HARNESS_STARTED, own=2)
        await store.cut(fork, "snp_2", own=3, parent="snp_1")
        await store.snapshots.remove("snp_1")
        assert (await store.executions.get("exe_b")).snapshot_id == "snp_2"

    async def test_and_no_longer_than_it_lives(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3)
        await store.finish(lease, own=4)
        await store.executions.submit(forked(), execution_id="exe_b")
        await store.executions.want("exe_b", CancelWant("c1", 0))
        await store.snapshots.remove("snp_1")
        assert (await store.executions.get("exe_b")).snapshot_id is None


class TestIntents:
    async def states(self, store: Store, execution_id: str = "exe_b") -> dict[str, IntentState]:
        return {intent.key: intent.state for intent in await store.intents.list(execution_id)}

    async def test_as_they_stood_at_the_cut(self, store: Store) -> None:
        lease = await store.running()
        for key, effect in (
            ("done", Effect.ONCE),
            ("open", Effect.ONCE),
            ("repeatable", Effect.IDEMPOTENT),
            ("ended later", Effect.UNKNOWN),
            ("settled later", Effect.ONCE),
        ):
            await begun(store, lease, key, effect)
        await ended(store, lease, "done", "result")
        await cut_now(store, lease, "snp_1", own=3, intents=5)
        await ended(store, lease, "ended later", "too late")
        await begun(store, lease, "begun later")
        await store.executions.submit(forked(), execution_id="exe_b")
        assert await self.states(store) == {
            "done": IntentState.DONE,
            "open": IntentState.IN_DOUBT,
            "repeatable": IntentState.OPEN,
            "ended later": IntentState.IN_DOUBT,
            "settled later": IntentState.IN_DOUBT,
        }
        assert (await store.intents.get("exe_b", "done")).result == "result"
        assert (await store.intents.get("exe_b", "ended later")).result == ""
        assert (await self.states(store, "exe_a"))["ended later"] is IntentState.DONE
        await store.executions.want("exe_b", CancelWant("c1", 0))
        (told,) = await store.executions.tally(datetime.now(UTC) - timedelta(minutes=1))
        assert (told.completed, told.in_doubt) == (1, 3)

    async def test_the_fork_goes_on_with_its_own(self, store: Store) -> None:
        lease = await store.running()
        await begun(store, lease, "done")
        await ended(store, lease, "done", "result")
        await begun(store, lease, "open")
        await cut_now(store, lease, "snp_1", own=3, intents=2)
        await begun(store, lease, "third of a")
        await store.executions.submit(forked(), execution_id="exe_b")
        fork = (await store.claimed()).lease
        await store.place(fork, own=1)
        await store.move(fork, Trigger.HARNESS_STARTED, own=2)

        async def asked(key: str, effect: Effect = Effect.ONCE) -> tuple[bool, IntentState, int]:
            got = await store.intents.begin(
                fork, attempt=1, key=key, run="r", kind="bash", effect=effect, summary=key, digest=f"d-{key}"
            )
            return got.go, got.intent.state, got.intent.n

        assert await asked("done") == (False, IntentState.DONE, 1)
        assert await asked("open") == (False, IntentState.IN_DOUBT, 2)  # even of the same run: it is another attempt
        assert await asked("third of b") == (True, IntentState.OPEN, 3)
        settled = await store.intents.settle("exe_b", "open", Decision.RETRY, result="", by="me")
        assert settled.state is IntentState.RETRY
        assert (await store.intents.get("exe_a", "open")).state is IntentState.OPEN

    async def test_a_fork_of_a_fork(self, store: Store) -> None:
        lease = await store.running()
        await begun(store, lease, "done")
        await ended(store, lease, "done", "result")
        await cut_now(store, lease, "snp_1", own=3, intents=1)
        await store.executions.submit(forked(), execution_id="exe_b")
        fork = (await store.claimed()).lease
        await store.place(fork, own=1)
        await store.move(fork, Trigger.HARNESS_STARTED, own=2)
        await cut_now(store, fork, "snp_2", own=3, intents=1)
        await store.executions.submit(forked("exe_b", "snp_2"), execution_id="exe_c")
        assert await self.states(store, "exe_c") == {"done": IntentState.DONE}

    async def test_a_long_journal_whole_and_in_order(self, store: Store) -> None:
        lease = await store.running()
        for n in range(450):
            await begun(store, lease, f"k{n}")
            if n % 3:
                await ended(store, lease, f"k{n}", f'"at":99999 "state":"open" {n}')
        await cut_now(store, lease, "snp_1", own=3, intents=433)
        await store.executions.submit(forked(), execution_id="exe_b")
        copied = await store.intents.list("exe_b", limit=1000)
        assert [(intent.key, intent.n) for intent in copied] == [(f"k{n}", n + 1) for n in range(433)]
        for n, intent in enumerate(copied):
            if n % 3:
                assert (intent.state, intent.result) == (IntentState.DONE, f'"at":99999 "state":"open" {n}')
            else:
                assert intent.state is IntentState.IN_DOUBT

    async def test_what_a_summary_says_is_not_taken_for_its_state(self, store: Store) -> None:
        lease = await store.running()
        await begun(store, lease, 'say "state":"open","at":99999')
        await ended(store, lease, 'say "state":"open","at":99999')
        await cut_now(store, lease, "snp_1", own=3, intents=1)
        await store.executions.submit(forked(), execution_id="exe_b")
        (intent,) = await store.intents.list("exe_b")
        assert (intent.state, intent.summary) == (IntentState.DONE, 'say "state":"open","at":99999')


class TestRewind:
    async def ended_one(self, store: Store) -> None:
        lease = await store.running(name="n")
        await store.cut(lease, "snp_1", own=3)
        await store.finish(lease, own=4)

    async def test_the_name_moves(self, store: Store) -> None:
        await self.ended_one(store)
        await store.executions.submit(forked(rewind=True, name="n"), execution_id="exe_b")
        assert (await store.executions.resolve("n", tenant=T)).id == "exe_b"
        assert (await store.executions.get("exe_a")).spec.name == "n"
        assert (await store.history.read("exe_b", Cursor())).events[1].data["rewind"] is True

    async def test_only_of_what_has_ended(self, store: Store) -> None:
        lease = await store.running(name="n")
        await store.cut(lease, "snp_1", own=3)
        with pytest.raises(Conflict) as refused:
            await store.executions.submit(forked(rewind=True, name="n"), execution_id="exe_b")
        assert not isinstance(refused.value, NameTaken)
        assert (refused.value.data["state"], refused.value.data["id"]) == ("RUNNING", "exe_a")
        assert "cancel" in refused.value.data["remedy"]

    async def test_once(self, store: Store) -> None:
        await self.ended_one(store)
        await store.executions.submit(forked(rewind=True, name="n"), execution_id="exe_b")
        with pytest.raises(NameTaken):
            await store.executions.submit(forked(rewind=True, name="n"), execution_id="exe_c")

    async def test_a_cursor_of_before_is_told_where_the_name_is(self, store: Store) -> None:
        await self.ended_one(store)
        old = (await store.history.tail("exe_a")).next
        made = await store.executions.submit(forked(rewind=True, name="n"), execution_id="exe_b")
        assert made.execution.generation == 2
        for seq in (1, old.seq):
            with pytest.raises(Gone) as gone:
                await store.history.read("exe_b", Cursor(old.generation, seq))
            assert (gone.value.data["moved_to"], gone.value.data["moved_from"]) == ("exe_b", "exe_a")
        with pytest.raises(Gone):
            async for _ in store.history.follow("exe_b", old):
                pass
        assert (await store.history.read("exe_a", Cursor(1, 1))).generation == 1

    async def test_who_has_read_nothing_begins_at_the_start(self, store: Store) -> None:
        await self.ended_one(store)
        await store.executions.submit(forked(rewind=True, name="n"), execution_id="exe_b")
        page = await store.history.read("exe_b", Cursor())
        assert (page.generation, page.next) == (2, Cursor(2, 2))
        seen: list[Event] = []
        async for page in store.history.follow("exe_b", Cursor()):
            seen += page.events
            if len(seen) == 2:
                await store.executions.want("exe_b", CancelWant("c1", 0))
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        assert seen[-1].type == "execution.finished"

    async def test_a_name_given_again_moves_as_well(self, store: Store) -> None:
        await self.ended_one(store)
        await store.submitted("exe_b", name="n")
        with pytest.raises(Gone) as gone:
            await store.history.read("exe_b", Cursor(1, 1))
        assert gone.value.data["moved_to"] == "exe_b"
        assert (await store.submitted("exe_c")) == "exe_c"
        assert (await store.executions.get("exe_c")).generation == 1


class TestTree:
    async def family(self, store: Store) -> None:
        """a ─ b ─ c, and a ─ d, each with a snapshot of its own."""
        for name, parent in (("a", ""), ("b", "a"), ("c", "b"), ("d", "a")):
            if parent:
                await store.executions.submit(forked(f"exe_{parent}", f"snp_{parent}"), execution_id=f"exe_{name}")
            else:
                await store.submitted("exe_a")
            lease = (await store.claimed()).lease
            assert lease.execution_id == f"exe_{name}"
            await store.place(lease, own=1)
            await store.move(lease, Trigger.HARNESS_STARTED, own=2)
            await store.cut(lease, f"snp_{name}", own=3)
            await store.finish(lease, own=4)

    async def ids(self, store: Store, execution_id: str) -> set[str]:
        return {snapshot.id for snapshot in await store.snapshots.tree(execution_id)}

    async def test_those_before_and_those_after(self, store: Store) -> None:
        await self.family(store)
        assert await self.ids(store, "exe_a") == {"snp_a", "snp_b", "snp_c", "snp_d"}
        assert await self.ids(store, "exe_b") == {"snp_a", "snp_b", "snp_c"}
        assert await self.ids(store, "exe_c") == {"snp_a", "snp_b", "snp_c"}
        assert await self.ids(store, "exe_d") == {"snp_a", "snp_d"}
        assert await self.ids(store, "exe_none") == set()

    async def test_the_family(self, store: Store) -> None:
        await self.family(store)
        await store.executions.submit(forked("exe_c", "snp_c"), execution_id="exe_e")  # has none of its own yet
        assert await store.snapshots.family("exe_a") == ["exe_a", "exe_b", "exe_c", "exe_d", "exe_e"]
        assert await store.snapshots.family("exe_c") == ["exe_a", "exe_b", "exe_c", "exe_e"]
        assert await store.snapshots.family("exe_d") == ["exe_a", "exe_d"]
        await store.executions.remove("exe_b")
        assert await store.snapshots.family("exe_c") == ["exe_a", "exe_b", "exe_c", "exe_e"]
        await store.executions.remove("exe_c")
        assert await store.snapshots.family("exe_a") == ["exe_a", "exe_c", "exe_d", "exe_e"]
        assert list(await store.snapshots.family("exe_none")) == []

    async def test_one_removed_between_leaves_the_others_together(self, store: Store) -> None:
        await self.family(store)
        await store.executions.remove("exe_b")
        assert await self.ids(store, "exe_c") == {"snp_a", "snp_c"}
        assert await self.ids(store, "exe_a") == {"snp_a", "snp_c", "snp_d"}
        await store.executions.remove("exe_a")
        assert await self.ids(store, "exe_c") == {"snp_c"}
        await store.executions.submit(forked("exe_c", "snp_c"), execution_id="exe_e")
        await store.executions.remove("exe_c")
        assert await self.ids(store, "exe_e") == {"snp_c"}  # which is kept for it


class TestRemoving:
    async def test_its_snapshots_go_with_it(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3, name="n")
        await store.cut(lease, "snp_2", own=4)
        await store.finish(lease, own=5)
        await store.executions.remove("exe_a")
        assert (await store.snapshots.list(tenant=T)).snapshots == ()
        keys = (await store.server.ask("SCAN", "0", "MATCH", f"{store.keys.prefix}*snapshot*", "COUNT", 100000))[1]
        assert keys == []

    async def test_but_for_those_others_are_still_to_begin_from(self, store: Store) -> None:
        lease = await store.running()
        await store.cut(lease, "snp_1", own=3)
        await store.cut(lease, "snp_2", own=4)
        await store.finish(lease, own=5)
        await store.executions.submit(forked(), execution_id="exe_b")
        await store.executions.remove("exe_a")
        await store.executions.remove("exe_a")
        assert [snapshot.id for snapshot in (await store.snapshots.list(tenant=T)).snapshots] == ["snp_1"]
        with pytest.raises(Gone) as gone:
            await store.executions.submit(forked(), execution_id="exe_c")
        assert gone.value.data["id"] == "exe_a"
        with pytest.raises(Conflict):
            await store.snapshots.remove("snp_1")
        await store.executions.want("exe_b", CancelWant("c1", 0))
        await store.snapshots.remove("snp_1")
        await store.executions.remove("exe_b")
        left = (await store.server.ask("SCAN", "0", "MATCH", f"{store.keys.prefix}*", "COUNT", 100000))[1]
        assert [key for key in left if b"snapshot" in key or b"forks" in key] == []
