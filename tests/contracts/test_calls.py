"""The contract of `Calls`: what is the same call, what is recorded, what each end of one does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from orchestrator.calls import RECORD_BYTES, Answer, Asked, ModelUsage, Replay, Reserved
from orchestrator.errors import Fenced, NotFound, StoreUnavailable
from orchestrator.execution import CancelWant, Spend
from orchestrator.history import Lease
from orchestrator.lifecycle import Trigger
from orchestrator.stores.redis import Keys, RedisCalls, Server
from tests.contracts.redis_store import LosesReplies, Store

MOST = ModelUsage(100, 50, cost_micros=400)
IF_CUT = ModelUsage(100, 10, cost_micros=200, estimated=True)
USED = ModelUsage(90, 20, cache_read_tokens=5, cache_write_tokens=3, cost_micros=250)
FACTS = {"api": "anthropic-messages", "provider": "p", "model": "m/é"}
ASKED = Asked("digest", "", MOST, IF_CUT, FACTS)
ANSWER = Answer(200, {"content-type": "text/event-stream"}, b"data: \xff\x00\n\ndata: {}\n\n", True)
AFTER_ONE = Spend(micros=250, input_tokens=98, output_tokens=20, calls=1)


def keyed(key: str = "m1", digest: str = "digest") -> Asked:
    return replace(ASKED, key=key, digest=digest)


async def begun(store: Store, lease: Lease, asked: Asked = ASKED, *, attempt: int = 1) -> Reserved:
    got = await store.calls.begin(lease, attempt, asked)
    assert isinstance(got, Reserved), got
    return got


async def answered(store: Store, lease: Lease, asked: Asked = ASKED, *, attempt: int = 1) -> str:
    """Made, recorded and delivered."""
    call = (await begun(store, lease, asked, attempt=attempt)).call
    await store.calls.finish(lease, call, ANSWER, USED, FACTS)
    await store.calls.delivered(lease, attempt, call)
    return call


async def spend(store: Store) -> Spend:
    return (await store.executions.get("exe_a")).spend


class TestTheSame:
    async def test_with_a_key_in_any_attempt(self, store: Store) -> None:
        lease = await store.running()
        call = await answered(store, lease, keyed())
        assert await store.calls.begin(lease, 1, keyed()) == Replay(call, ANSWER)
        lease = await store.next_attempt(lease, own=3)
        for _ in range(2):  # delivered or not: a key means one call
            assert await store.calls.begin(lease, 2, keyed()) == Replay(call, ANSWER)
            await store.calls.delivered(lease, 2, call)

    async def test_another_body_under_a_key_is_another_call(self, store: Store) -> None:
        lease = await store.running()
        call = await answered(store, lease, keyed())
        other = await begun(store, lease, keyed(digest="other"))
        assert other.call != call
        assert isinstance(await store.calls.begin(lease, 1, keyed()), Replay)

    async def test_another_key_is_another_call(self, store: Store) -> None:
        lease = await store.running()
        assert await answered(store, lease, keyed()) != (await begun(store, lease, keyed("m2"))).call

    async def test_with_and_without_a_key_are_two(self, store: Store) -> None:
        lease = await store.running()
        assert await answered(store, lease, keyed()) != (await begun(store, lease)).call

    async def test_without_a_key_the_how_manieth_of_the_attempt(self, store: Store) -> None:
        lease = await store.running()
        first = await answered(store, lease)
        second = await answered(store, lease)
        assert first != second
        lease = await store.next_attempt(lease, own=3)
        for call in (first, second):
            for _ in range(2):  # asked again before it was delivered whole: the same one
                assert await store.calls.begin(lease, 2, ASKED) == Replay(call, ANSWER)
            for _ in range(2):  # and told twice, it counts once
                await store.calls.delivered(lease, 2, call)
        assert isinstance(await store.calls.begin(lease, 2, ASKED), Reserved)

    async def test_what_was_not_delivered_is_asked_again(self, store: Store) -> None:
        lease = await store.running()
        call = (await begun(store, lease)).call
        await store.calls.finish(lease, call, ANSWER, USED, FACTS)
        assert await store.calls.begin(lease, 1, ASKED) == Replay(call, ANSWER)

    async def test_an_adopted_attempt_counts_on(self, store: Store) -> None:
        lease = await store.running()
        first = await answered(store, lease)
        lease = await store.adopted()
        assert (await begun(store, lease)).call != first


class TestBegin:
    async def test_it_reserves(self, store: Store) -> None:
        lease = await store.running()
        one = await begun(store, lease, keyed("a"))
        two = await begun(store, lease, keyed("b"))
        assert one.spend == Spend(reserved_micros=400, reserved_tokens=150)
        assert two.spend == Spend(reserved_micros=800, reserved_tokens=300) == await spend(store)
        assert one.call != two.call

    async def test_under_way_already_it_is_the_same_call(self, store: Store) -> None:
        lease = await store.running()
        assert await begun(store, lease) == await begun(store, lease)

    async def test_a_replay_counts_and_costs_nothing(self, store: Store) -> None:
        lease = await store.running()
        call = await answered(store, lease, keyed())
        await store.calls.begin(lease, 1, replace(keyed(), facts={"model": "now", "call": "forged", "cost_micros": 9}))
        assert await spend(store) == replace(AFTER_ONE, replays=1)
        usage = (await store.told("usage"))[-1]
        assert (usage.source, usage.attempt) == ("platform", 1)
        assert usage.data == {
            "call": call,
            "model": "now",
            "input_tokens": 90,
            "output_tokens": 20,
            "cache_read_tokens": 5,
            "cache_write_tokens": 3,
            "estimated": False,
            "cost_micros": 0,
            "replayed": True,
        }

    async def test_a_replay_whose_reply_was_lost_counts_once(self, store: Store, redis_url: str) -> None:
        lease = await store.running()
        call = await answered(store, lease, keyed())
        losing = LosesReplies(redis_url)
        for _ in range(2):
            losing.lose = True
            assert await RedisCalls(losing, store.keys).begin(lease, 1, keyed()) == Replay(call, ANSWER)
        await losing.aclose()
        assert (await spend(store)).replays == 2
        assert [e.data["replayed"] for e in await store.told("usage")] == [False, True, True]


class TestFinish:
    async def test_settled_recorded_and_told_in_one_step(self, store: Store) -> None:
        lease = await store.running()
        call = (await begun(store, lease)).call
        assert await store.calls.finish(lease, call, ANSWER, USED, FACTS) == AFTER_ONE == await spend(store)
        (usage,) = await store.told("usage")
        assert usage.data == {
            **FACTS,
            "call": call,
            "input_tokens": 90,
            "output_tokens": 20,
            "cache_read_tokens": 5,
            "cache_write_tokens": 3,
            "estimated": False,
            "cost_micros": 250,
            "replayed": False,
        }

    async def test_finished_already_nothing_changes(self, store: Store) -> None:
        lease = await store.running()
        call = await answered(store, lease, keyed())
        dear = ModelUsage(9, 9, cost_micros=999)
        assert await store.calls.finish(lease, call, None, dear, FACTS) == AFTER_ONE
        assert await store.calls.cut(lease, call, dear, "late") == AFTER_ONE
        assert await store.calls.cancel(lease, call) == AFTER_ONE
        assert await store.calls.begin(lease, 1, keyed()) == Replay(call, ANSWER)
        assert len(await store.told("usage", "model.cut")) == 2  # the call's own and the replay's

    async def test_an_error_is_made_again(self, store: Store) -> None:
        lease = await store.running()
        call = (await begun(store, lease)).call
        await store.calls.finish(lease, call, None, USED, FACTS)
        again = await begun(store, lease)
        assert again.call != call
        assert again.spend == replace(AFTER_ONE, reserved_micros=400, reserved_tokens=150)
        assert len(await store.told("usage")) == 1

    async def test_one_too_long_is_made_again(self, store: Store) -> None:
        lease = await store.running()
        for size, kind in ((RECORD_BYTES + 1, Reserved), (RECORD_BYTES, Replay)):
            asked = keyed(f"m{size}")
            call = (await begun(store, lease, asked)).call
            await store.calls.finish(lease, call, replace(ANSWER, body=bytes(size)), USED, FACTS)
            got = await store.calls.begin(lease, 1, asked)
            assert isinstance(got, kind)
            assert not isinstance(got, Replay) or got.answer.body == bytes(size)

    async def test_all_answers_together_have_a_bound(self, store: Store) -> None:
        lease = await store.running()
        bounded = RedisCalls(store.server, store.keys, records_bytes=250)
        kinds = []
        for n in range(3):  # of about 100 bytes each, packed
            call = (await begun(store, lease, keyed(f"m{n}"))).call
            await bounded.finish(lease, call, ANSWER, USED, FACTS)
            kinds.append(type(await bounded.begin(lease, 1, keyed(f"m{n}"))))
        assert kinds == [Replay, Replay, Reserved]
        assert (await spend(store)).calls == 3


class TestCutAndCancelled:
    async def test_what_broke_off_costs_what_was_seen_and_is_made_again(self, store: Store) -> None:
        lease = await store.running()
        call = (await begun(store, lease)).call
        after = await store.calls.cut(lease, call, ModelUsage(100, 7, cost_micros=120), "reset by peer")
        assert after == Spend(micros=120, input_tokens=100, output_tokens=7, calls=1) == await spend(store)
        (cut,) = await store.told("model.cut", "usage")
        assert cut.type == "model.cut"
        assert {
            **FACTS,
            "call": call,
            "epoch": 1,
            "cost_micros": 120,
            "why": "reset by peer",
        }.items() <= cut.data.items()
        assert (cut.data["input_tokens"], cut.data["output_tokens"]) == (100, 7)
        assert await store.calls.cut(lease, call, USED, "again") == after
        assert (await begun(store, lease)).call != call

    async def test_what_never_reached_the_provider_costs_nothing(self, store: Store) -> None:
        lease = await store.running()
        call = (await begun(store, lease)).call
        for _ in range(2):
            assert await store.calls.cancel(lease, call) == Spend() == await spend(store)
        assert await store.told("model.cut", "usage") == []
        assert (await begun(store, lease)).call != call


class TestRecover:
    async def test_what_earlier_epochs_left_counts_as_if_cut(self, store: Store) -> None:
        lease = await store.running()
        await answered(store, lease, keyed())
        left = [(await begun(store, lease, keyed(key))).call for key in "ab"]
        lease = await store.adopted()
        for _ in range(2):  # asked again: the same answer, and nothing twice
            assert await store.calls.recover(lease) == 2
        expected = Spend(micros=650, input_tokens=298, output_tokens=40, calls=3)
        assert await spend(store) == expected
        cuts = await store.told("model.cut")
        assert [e.data["call"] for e in cuts] == left
        assert {(e.data["epoch"], e.data["cost_micros"], e.data["estimated"], e.data["model"]) for e in cuts} == {
            (1, 200, True, "m/é")
        }
        assert (await begun(store, lease, keyed("a"))).call not in left
        assert isinstance(await store.calls.begin(lease, 1, keyed()), Replay)

    async def test_its_own_are_left_alone(self, store: Store) -> None:
        lease = await store.running()
        mine = await begun(store, lease)
        assert await store.calls.recover(lease) == 0
        assert await store.calls.begin(lease, 1, ASKED) == mine

    async def test_nothing_was_left(self, store: Store) -> None:
        lease = await store.running()
        assert await store.calls.recover(lease) == 0
        assert await spend(store) == Spend()

    async def test_one_begun_without_it_settles_its_own_name_first(self, store: Store) -> None:
        lease = await store.running()
        left = await begun(store, lease)
        again = await begun(store, await store.adopted())
        assert again.call != left.call
        assert again.spend == Spend(200, 100, 10, 400, 150, calls=1)

    async def test_its_end_settles_what_is_left_and_forgets_the_answers(self, store: Store) -> None:
        lease = await store.running()
        await answered(store, lease, keyed())
        left = (await begun(store, lease)).call
        await store.finish(lease, own=3)
        assert await spend(store) == Spend(450, 198, 30, calls=2)
        assert [e.data["call"] for e in await store.told("model.cut")] == [left]
        assert await store.server.ask("EXISTS", store.keys.calls("exe_a")) == 0

    async def test_one_that_ends_unowned_as_well(self, store: Store) -> None:
        lease = await store.running()
        await begun(store, lease)
        await store.move(lease, Trigger.SANDBOX_LOST, own=3, failures=1)
        ended = await store.executions.want("exe_a", CancelWant("c", 0))
        assert (ended.ended, ended.spend) == (True, Spend(200, 100, 10, calls=1))


EVERY: dict[str, Callable[[RedisCalls, Lease], Awaitable[object]]] = {
    "recover": lambda calls, lease: calls.recover(lease),
    "begin": lambda calls, lease: calls.begin(lease, 1, ASKED),
    "finish": lambda calls, lease: calls.finish(lease, "c1", ANSWER, USED, FACTS),
    "cut": lambda calls, lease: calls.cut(lease, "c1", USED, "why"),
    "cancel": lambda calls, lease: calls.cancel(lease, "c1"),
    "delivered": lambda calls, lease: calls.delivered(lease, 1, "c1"),
}


@pytest.mark.parametrize("method", EVERY)
class TestRefused:
    async def refused(self, store: Store, method: str, lease: Lease) -> None:
        before = await store.executions.get("exe_a")
        with pytest.raises(Fenced) as fenced:
            await EVERY[method](store.calls, lease)
        assert fenced.value.data["epoch"] == before.epoch
        assert await store.executions.get("exe_a") == before

    async def test_another_epoch_owns_it(self, store: Store, method: str) -> None:
        lease = await store.running()
        await begun(store, lease)
        await store.adopted()
        await self.refused(store, method, lease)

    async def test_nobody_owns_it(self, store: Store, method: str) -> None:
        lease = await store.running()
        await begun(store, lease)
        await store.executions.release(lease)
        await self.refused(store, method, lease)

    async def test_it_has_ended(self, store: Store, method: str) -> None:
        lease = await store.running()
        await begun(store, lease)
        await store.finish(lease, own=3)
        await self.refused(store, method, lease)

    async def test_no_such_execution(self, store: Store, method: str) -> None:
        with pytest.raises(NotFound):
            await EVERY[method](store.calls, Lease("exe_none", 1, "w1", 15.0))

    async def test_no_such_call(self, store: Store, method: str) -> None:
        lease = await store.running()
        if method in ("recover", "begin"):
            await EVERY[method](store.calls, lease)
            return
        with pytest.raises(NotFound) as unknown:
            await EVERY[method](store.calls, lease)
        assert unknown.value.data == {"kind": "call", "id": "c1"}

    async def test_the_store_is_away(self, installation: str, method: str) -> None:
        server = Server("unix:///nowhere/redis.sock", patience_s=0.05)
        with pytest.raises(StoreUnavailable):
            await EVERY[method](RedisCalls(server, Keys(installation)), Lease("exe_a", 1, "w1", 15.0))
        await server.aclose()
