"""Messages and wishes over HTTP: durable, once per id, with their place in the history."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator import errors
from orchestrator.events import SANDBOX_RESIZED, Entry
from orchestrator.execution import Resources
from orchestrator.history import Change
from orchestrator.lifecycle import ExecutionState, Trigger
from tests.server.conftest import Api


async def test_a_message_is_taken_once_per_id(api: Api) -> None:
    lease = await api.running()
    execution = api.client.execution(lease.execution_id)
    first, again = await execution.send("Ada", id="m1"), await execution.send("Ada", id="m1")
    assert (first.n, first.repeated, again.n, again.repeated) == (1, False, 1, True)
    with pytest.raises(errors.KeyReused):
        await execution.send("Grace", id="m1")
    raw = await execution.send(b"\x00\xff")
    assert (raw.n, raw.repeated) == (2, False)
    inbox = await api.store.history.inbox(lease.execution_id, 0)
    assert [(message.body, message.mode) for message in inbox] == [(b"Ada", "steer"), (b"\x00\xff", "raw")]
    accepted = [event async for event in _events(api, lease.execution_id) if event.type == "message.accepted"]
    assert (accepted[0].seq, accepted[0].data["n"], accepted[0].data["id"]) == (first.seq, 1, "m1")
    record = await execution.refresh()
    assert (record.inbox.sent, record.inbox.delivered) == (2, 0)


async def _events(api: Api, id: str) -> Any:
    for event in (await api.client.execution(id).history()).events:
        yield event


async def test_a_thousand_messages_from_ten_senders_twice_each(api: Api) -> None:
    lease = await api.running()

    async def sender(name: int) -> None:
        for at in range(50):
            for _ in range(2):
                await api.client.execution(lease.execution_id).send(f"{name}/{at}", id=f"{name}-{at}")

    await asyncio.gather(*[sender(name) for name in range(10)])
    inbox = await api.store.history.inbox(lease.execution_id, 0, limit=1000)
    assert [message.n for message in inbox] == list(range(1, 501))
    assert len({message.id for message in inbox}) == 500
    for name in range(10):
        own = [message.body.decode() for message in inbox if message.id.startswith(f"{name}-")]
        assert own == [f"{name}/{at}" for at in range(50)]  # each sender's own order is kept


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "body"),
        ({"text": "a", "data_b64": "YQ=="}, 422, "body"),
        ({"text": "a", "id": ""}, 422, "id"),
        ({"text": "a", "mode": "shout"}, 422, "mode"),
        ({"text": "a" * (512 * 1024 + 1)}, 422, "body"),
        ({"text": "ä" * 200_000}, 413, "text"),
    ],
)
async def test_a_wrong_message_is_named(api: Api, body: dict[str, Any], status: int, field: str) -> None:
    id = await api.submit(stdin="jsonl")
    answer = await api.http.post(f"/v1/executions/{id}/messages", json=body)
    assert (answer.status_code, answer.json()["field"]) == (status, field), answer.text


async def test_a_harness_that_reads_nothing_gets_nothing(api: Api) -> None:
    id = await api.submit(stdin="none")
    with pytest.raises(errors.Conflict) as caught:
        await api.client.execution(id).send("x")
    assert caught.value.data["remedy"]
    assert (await api.record(id)).inbox_tail == 0


async def test_wishes_are_recorded_and_repeat_harmlessly(api: Api) -> None:
    lease = await api.running(limits={"grace_s": 7})
    execution = api.client.execution(lease.execution_id)
    for _ in range(2):
        await execution.interrupt(id="i1")
        await execution.pause(id="p1")
        await execution.resources(cpus=2.0, id="r1")
        await execution.cancel(reason="enough", id="c1")
    record = await execution.refresh()
    assert [want.id for want in record.wants.interrupts] == ["i1"] and record.wants.interrupts[0].attempt == 1
    assert record.wants.pause is not None and record.wants.pause.paused
    assert record.wants.resources is not None and record.wants.resources.cpus == 2.0
    assert record.wants.cancel is not None
    assert (record.wants.cancel.grace_s, record.wants.cancel.reason) == (7, "enough")
    await execution.resume(id="p2")
    assert (await api.record(lease.execution_id)).wants.pause is not None
    wanted = [event async for event in _events(api, lease.execution_id) if event.type == "execution.wanted"]
    assert len(wanted) == 5


@pytest.mark.parametrize("verb", ["interrupt", "cancel", "pause", "resume"])
async def test_a_wish_needs_no_body(api: Api, verb: str) -> None:
    lease = await api.running()
    answer = await api.http.post(f"/v1/executions/{lease.execution_id}/{verb}")
    assert answer.status_code in ({202, 409} if verb == "resume" else {202}), answer.text


async def test_what_has_ended_takes_no_wish_and_says_what_to_do(api: Api) -> None:
    lease = await api.running()
    await api.store.finish(lease, own=3)
    for verb, body in (
        ("messages", {"text": "x"}),
        ("interrupt", {}),
        ("pause", {}),
        ("resume", {}),
    ):
        answer = await api.http.post(f"/v1/executions/{lease.execution_id}/{verb}", json=body)
        problem = answer.json()
        assert (answer.status_code, problem["state"]) == (409, "FINISHED"), (verb, problem)
        assert problem["remedy"]


async def test_cancelling_what_nobody_runs_ends_it_at_once(api: Api) -> None:
    id = await api.submit()
    record = await api.client.execution(id).cancel(reason="changed my mind")
    assert record.ended and record.outcome is not None and record.outcome.kind == "CANCELLED"


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "body"), ({"cpus": 0}, "cpus"), ({"pids": 1}, "pids"), ({"memory_bytes": 1}, "memory_bytes"), ([], "body")],
)
async def test_a_wrong_resize_is_named(api: Api, body: Any, field: str) -> None:
    id = await api.submit()
    answer = await api.http.patch(f"/v1/executions/{id}/resources", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field), answer.text


async def test_a_resize_can_wait_for_its_receipt(api: Api) -> None:
    lease = await api.running()
    execution = api.client.execution(lease.execution_id)
    waiting = asyncio.create_task(execution.resources(cpus=2.0, id="r1", hold_s=60))
    while (await api.record(lease.execution_id)).wants.resources is None:
        await asyncio.sleep(0.005)
    assert not waiting.done()
    await api.store.history.append(
        lease,
        attempt=1,
        own=3,
        entries=[Entry(SANDBOX_RESIZED, {"id": "r1", "result": "applied", "cpus": 2.0})],
        change=Change(resources=Resources(cpus=2.0), done_wants=("r1",)),
    )
    record = await waiting
    assert record.resources.cpus == 2.0 and record.wants.resources is None
    late = await api.http.patch(
        f"/v1/executions/{lease.execution_id}/resources", json={"cpus": 1}, headers={"prefer": "wait=0.05"}
    )
    assert late.status_code == 202


async def test_a_resize_that_cannot_be_given_is_refused_to_who_waits(api: Api) -> None:
    lease = await api.running()
    execution = api.client.execution(lease.execution_id)
    waiting = asyncio.create_task(execution.resources(memory_bytes=1 << 26, id="r1", hold_s=60))
    while (await api.record(lease.execution_id)).wants.resources is None:
        await asyncio.sleep(0.005)
    said = {"id": "r1", "result": "infeasible", "detail": "more memory is in use"}
    await api.store.history.append(
        lease, attempt=1, own=3, entries=[Entry(SANDBOX_RESIZED, said)], change=Change(done_wants=("r1",))
    )
    with pytest.raises(errors.Infeasible, match="more memory is in use") as refused:
        await waiting
    assert refused.value.data["field"] == "resources"


async def test_a_pause_is_seen_in_the_state(api: Api) -> None:
    lease = await api.running()
    await api.client.execution(lease.execution_id).pause(id="p1")
    await api.store.history.append(
        lease,
        attempt=1,
        own=3,
        change=Change(trigger=Trigger.PAUSE, expects=ExecutionState.RUNNING, done_wants=("p1",)),
    )
    assert (await api.client.execution(lease.execution_id).refresh()).state == "PAUSED"
